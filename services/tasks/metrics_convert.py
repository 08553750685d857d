"""The cgroup figures of containers as metrics: containerd's names, units and labels (core/metrics/cgroups), so that its
dashboards work.

Each family is called ``container_NAME_UNIT``, and each series has ``container_id``, ``namespace`` and ``runtime``. All
are gauges, the growing ones too, as in containerd. What a shim answers decides which there are: the figures of cgroup
v1 or of v2; other shims may answer something else, of which nothing is shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError, Message

from api.containerd.cgroups.v1 import metrics_pb2 as v1
from api.containerd.cgroups.v2 import metrics_pb2 as v2
from services.kit.metrics import Family, Sample
from services.tasks.store import Metric

_BYTES, _TOTAL, _NANOSECONDS, _MICROSECONDS = "bytes", "total", "nanoseconds", "microseconds"

_CGROUPS: dict[str, type[v1.Metrics | v2.Metrics]] = {
    "io.containerd.cgroups.v1.Metrics": v1.Metrics,
    "io.containerd.cgroups.v2.Metrics": v2.Metrics,
}
_ENTRIES = 1000
"""Devices or processors of one figure that are shown."""


class _Figure(NamedTuple):
    """One figure: its part in a family's name, its unit, and the fields that lead to it."""

    name: str
    unit: str
    path: tuple[str, ...]


def _memory(*names: str, unit: str = _BYTES) -> Iterator[_Figure]:
    """Figures of memory whose fields have their names."""
    for name in names:
        yield _Figure(f"memory_{name}", unit, ("memory", name))


def _entries(*names: str) -> Iterator[_Figure]:
    """The four figures of each kind of memory in cgroup v1."""
    for field in names:
        name = field.replace("_", "")
        yield _Figure(f"memory_{name}_failcnt", _TOTAL, ("memory", field, "failcnt"))
        for figure in ("limit", "max", "usage"):
            yield _Figure(f"memory_{name}_{figure}", _BYTES, ("memory", field, figure))


_V1 = (
    _Figure("pids", "limit", ("pids", "limit")),
    _Figure("pids", "current", ("pids", "current")),
    _Figure("cpu_total", _NANOSECONDS, ("cpu", "usage", "total")),
    _Figure("cpu_kernel", _NANOSECONDS, ("cpu", "usage", "kernel")),
    _Figure("cpu_user", _NANOSECONDS, ("cpu", "usage", "user")),
    _Figure("cpu_throttle_periods", _TOTAL, ("cpu", "throttling", "periods")),
    _Figure("cpu_throttled_periods", _TOTAL, ("cpu", "throttling", "throttled_periods")),
    _Figure("cpu_throttled_time", _NANOSECONDS, ("cpu", "throttling", "throttled_time")),
    *_memory("cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback"),
    *(
        _Figure(f"memory_{total}{name}", _BYTES, ("memory", total + field))
        for total in ("", "total_")
        for name, field in (
            ("pgpgin", "pg_pg_in"),
            ("pgpgout", "pg_pg_out"),
            ("pgfault", "pg_fault"),
            ("pgmajfault", "pg_maj_fault"),
        )
    ),
    *_memory("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"),
    _Figure("memory_hierarchical_memory_limit", _BYTES, ("memory", "hierarchical_memory_limit")),
    _Figure("memory_hierarchical_memsw_limit", _BYTES, ("memory", "hierarchical_swap_limit")),
    *_memory("total_cache", "total_rss", "total_rss_huge", "total_mapped_file", "total_dirty", "total_writeback"),
    *_memory("total_inactive_anon", "total_active_anon", "total_inactive_file", "total_active_file"),
    *_memory("total_unevictable"),
    *_entries("usage", "swap", "kernel", "kernel_tcp"),
    # containerd counts the kernel's notices itself, from the start of its task monitor; this is the kernel's own number
    _Figure("memory_oom", _TOTAL, ("memory_oom_control", "oom_kill")),
)
_V2 = (
    _Figure("pids", "limit", ("pids", "limit")),
    _Figure("pids", "current", ("pids", "current")),
    _Figure("cpu_usage_usec", _MICROSECONDS, ("cpu", "usage_usec")),
    _Figure("cpu_user_usec", _MICROSECONDS, ("cpu", "user_usec")),
    _Figure("cpu_system_usec", _MICROSECONDS, ("cpu", "system_usec")),
    _Figure("cpu_nr_periods", _TOTAL, ("cpu", "nr_periods")),
    _Figure("cpu_nr_throttled", _TOTAL, ("cpu", "nr_throttled")),
    _Figure("cpu_throttled_usec", _MICROSECONDS, ("cpu", "throttled_usec")),
    *_memory("usage", "usage_limit", "swap_usage", "swap_limit", "file_mapped", "file_dirty", "file_writeback"),
    *_memory("pgactivate", "pgdeactivate", "pgfault", "pgmajfault", "pglazyfree", "pgrefill", "pglazyfreed", "pgscan"),
    *_memory("pgsteal", "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "anon", "file"),
    *_memory("kernel_stack", "slab", "sock", "shmem", "anon_thp", "slab_reclaimable", "slab_unreclaimable"),
    *_memory("workingset_refault", "workingset_activate", "workingset_nodereclaim"),
    *_memory("thp_fault_alloc", "thp_collapse_alloc"),
    _Figure("memory_oom", _TOTAL, ("memory_events", "oom")),
)

_BLKIO = (
    ("blkio_io_merged_recursive", _TOTAL, "io_merged_recursive"),
    ("blkio_io_queued_recursive", _TOTAL, "io_queued_recursive"),
    ("blkio_io_service_bytes_recursive", _BYTES, "io_service_bytes_recursive"),
    ("blkio_io_service_time_recursive", _TOTAL, "io_service_time_recursive"),
    ("blkio_io_serviced_recursive", _TOTAL, "io_serviced_recursive"),
    ("blkio_io_time_recursive", _TOTAL, "io_time_recursive"),
    ("blkio_sectors_recursive", _TOTAL, "sectors_recursive"),
)
_HUGETLB = (("usage", _BYTES), ("failcnt", _TOTAL), ("max", _BYTES))
_IO = (("rbytes", _BYTES), ("wbytes", _BYTES), ("rios", _TOTAL), ("wios", _TOTAL))


def families(figures: Iterable[tuple[str, str, Metric]]) -> list[Family]:
    """The families of what shims answered, each with its namespace and the path of its runtime's program."""
    found: dict[str, list[Sample]] = {}
    for namespace, program, metric in figures:
        message = _message(metric)
        if message is None:
            continue
        labels = {"container_id": metric.id, "namespace": namespace, "runtime": _runtime(program)}
        for name, value, own in _values(message):
            found.setdefault(f"container_{name}", []).append(Sample(float(value), {**labels, **own}))
    return [
        Family(name, f"{name.removeprefix('container_').replace('_', ' ')} of the container's cgroup", "gauge", samples)
        for name, samples in found.items()
    ]


def _runtime(program: str) -> str:
    """The runtime's name, as clients give it; the path of a program that has none."""
    found = re.fullmatch(r"containerd-shim-(.+)-([^-]+)", os.path.basename(program))
    return f"io.containerd.{found[1]}.{found[2]}" if found else program


def _message(metric: Metric) -> v1.Metrics | v2.Metrics | None:
    if metric.data is None:
        return None
    cls = _CGROUPS.get(metric.data.type_url.rpartition("/")[2])
    try:
        return None if cls is None else cls.FromString(metric.data.value)
    except DecodeError:
        return None


def _values(message: v1.Metrics | v2.Metrics) -> Iterator[tuple[str, int, dict[str, str]]]:
    """Name with unit, value, and further labels."""
    for figure in _V1 if isinstance(message, v1.Metrics) else _V2:
        value = _value(message, figure.path)
        if value is not None:
            yield f"{figure.name}_{figure.unit}", value, {}
    yield from _of_v1(message) if isinstance(message, v1.Metrics) else _of_v2(message)


def _value(message: Message, path: Sequence[str]) -> int | None:
    """A figure; None if the shim sent nothing of its kind."""
    for name in path[:-1]:
        if not message.HasField(name):
            return None
        message = getattr(message, name)
    value: int = getattr(message, path[-1])
    return value


def _of_v1(message: v1.Metrics) -> Iterator[tuple[str, int, dict[str, str]]]:
    for number, nanoseconds in enumerate(message.cpu.usage.per_cpu[:_ENTRIES]):
        yield f"per_cpu_{_NANOSECONDS}", nanoseconds, {"cpu": str(number)}
    for page in message.hugetlb[:_ENTRIES]:
        for field, unit in _HUGETLB:
            yield f"hugetlb_{field}_{unit}", getattr(page, field), {"page": page.pagesize}
    for name, unit, field in _BLKIO:
        for entry in getattr(message.blkio, field)[:_ENTRIES]:
            labels = {"op": entry.op, "device": entry.device, "major": str(entry.major), "minor": str(entry.minor)}
            yield f"{name}_{unit}", entry.value, labels


def _of_v2(message: v2.Metrics) -> Iterator[tuple[str, int, dict[str, str]]]:
    for entry in message.io.usage[:_ENTRIES]:
        for field, unit in _IO:
            yield f"io_{field}_{unit}", getattr(entry, field), {"major": str(entry.major), "minor": str(entry.minor)}
