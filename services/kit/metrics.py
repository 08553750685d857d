"""Metrics of a process: counters, gauges and histograms, as Prometheus has them.

A process only keeps numbers. The gateway asks each process for them (:mod:`services.kit.metrics_server`) and makes the
page (``gateway/metrics.py``); so prometheus_client is loaded once on a node, and only where
``[metrics] address`` is set. Without an address nothing is counted.

A metric is a module's constant::

    _BYTES = metrics.Counter("splitd_registry_received_bytes_total", "Bytes of bodies.", "host")
    _BYTES.add(len(chunk), host)

Names follow Prometheus' conventions: base units (seconds, bytes), ``_total`` for counters. Each series gets the label
``service``, the name of its process, on the page. The number of series is bounded: values that come from outside, such
as hosts, are in the metric's first label, and after :data:`VALUES` of them further ones become ``other``. Names of
images and containers are no labels, except where containerd has them (the cgroup metrics of containers).

Call all of this from the loop's thread.
"""

from __future__ import annotations

import bisect
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from services.kit import errors

log = logging.getLogger(__name__)

Kind = Literal["counter", "gauge", "histogram", "summary"]

VALUES = 100
"""Different values of a metric's first label."""
_SERIES = 2_000
"""Series of a metric: a bound for mistakes, since all labels but the first have values that the code chooses."""
OTHER = "other"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of buckets for calls."""
MINUTES = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of buckets for transfers, in seconds."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value; ``suffix`` is appended to the family's name."""

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """All series of one metric. A counter's name is without ``_total``, which is its samples' suffix."""

    name: str
    help: str
    kind: Kind
    samples: Sequence[Sample]


Source = Callable[[], Awaitable[Sequence[Family]]]
"""Answers families whose values are looked up when somebody asks."""

_on = False
_metrics: list[_Metric] = []
_sources: list[Source] = []
_failing: set[Source] = set()
"""Those that failed when they were last asked."""


def begin() -> None:
    """Count from here on."""
    global _on
    _on = True


def counts() -> bool:
    """Whether this process counts."""
    return _on


def end() -> None:
    """Forget everything, and count no longer; for tests."""
    global _on
    _on = False
    for metric in _metrics:
        metric.clear()
    _sources.clear()
    _failing.clear()


def source(asked: Source) -> None:
    """Ask ``asked`` too, each time somebody collects."""
    _sources.append(asked)


async def collect() -> list[Family]:
    """The families of this process. Those of a source that fails are missing, and no others; the log says it once."""
    found = _of_process()
    found += [family for metric in _metrics if (family := metric.family()).samples]
    for asked in _sources:
        try:
            found += await asked()
        except Exception as error:  # such as of a store whose disk is full
            if asked not in _failing:
                _failing.add(asked)
                foreseen = isinstance(error, errors.NodeError | OSError)
                log.warning("some metrics are missing: %s", error, exc_info=None if foreseen else error)
        else:
            _failing.discard(asked)
    return found


class _Metric:
    """The series of one metric, by the values of its labels."""

    def __init__(self, name: str, help: str, *labels: str) -> None:  # noqa: A002 - Prometheus' word
        self.name = name
        self.help = help
        self.labels = labels
        self._firsts: set[str] = set()
        _metrics.append(self)

    def clear(self) -> None:
        raise NotImplementedError

    def family(self) -> Family:
        raise NotImplementedError

    def _key(self, values: tuple[str, ...], size: int) -> tuple[str, ...]:
        """The key of a new series: with "other" for a first value that is one too many."""
        if values and values[0] not in self._firsts:
            if len(self._firsts) >= VALUES:
                return (OTHER, *values[1:])
            self._firsts.add(values[0])
        return (OTHER,) * len(values) if size >= _SERIES else values

    def _named(self, key: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self.labels, key, strict=True))


class Counter(_Metric):
    """A number that only grows; its name ends with ``_total``."""

    def __init__(self, name: str, help: str, *labels: str) -> None:  # noqa: A002
        super().__init__(name.removesuffix("_total"), help, *labels)
        self._values: dict[tuple[str, ...], float] = {}

    def add(self, amount: float, *values: str) -> None:
        """Count ``amount`` for the series with these values of the labels."""
        if not _on:
            return
        if values not in self._values:
            values = self._key(values, len(self._values))
        self._values[values] = self._values.get(values, 0.0) + amount

    def clear(self) -> None:
        self._values.clear()
        self._firsts.clear()

    def family(self) -> Family:
        return Family(
            self.name,
            self.help,
            "counter",
            [Sample(value, self._named(key), "_total") for key, value in self._values.items()],
        )


class Gauge(_Metric):
    """A number of this moment: set, or looked up by a function."""

    def __init__(self, name: str, help: str, *labels: str) -> None:  # noqa: A002
        super().__init__(name, help, *labels)
        self._values: dict[tuple[str, ...], float | Callable[[], float]] = {}

    def set(self, value: float | Callable[[], float], *values: str) -> None:
        """Set the series with these values of the labels. A function is asked at each collection; it must be quick."""
        if values not in self._values:
            values = self._key(values, len(self._values))
        self._values[values] = value

    def clear(self) -> None:
        self._values.clear()
        self._firsts.clear()

    def family(self) -> Family:
        return Family(
            self.name,
            self.help,
            "gauge",
            [Sample(float(v() if callable(v) else v), self._named(key)) for key, v in self._values.items()],
        )


class Histogram(_Metric):
    """How often values are below each of some bounds, and their sum and number."""

    def __init__(self, name: str, help: str, *labels: str, bounds: Sequence[float] = SECONDS) -> None:  # noqa: A002
        super().__init__(name, help, *labels)
        self._bounds = tuple(bounds)
        self._series: dict[tuple[str, ...], list[float]] = {}

    def observe(self, value: float, *values: str) -> None:
        """Count ``value`` for the series with these values of the labels."""
        if not _on:
            return
        series = self._series.get(values)
        if series is None:
            key = self._key(values, len(self._series))
            series = self._series.setdefault(key, [0.0] * (len(self._bounds) + 2))
        series[bisect.bisect_left(self._bounds, value)] += 1
        series[-1] += value

    def clear(self) -> None:
        self._series.clear()
        self._firsts.clear()

    def family(self) -> Family:
        samples = []
        for key, series in self._series.items():
            labels, below = self._named(key), 0.0
            for bound, count in zip((*self._bounds, None), series[:-1], strict=True):
                below += count
                samples.append(Sample(below, {**labels, "le": "+Inf" if bound is None else f"{bound:g}"}, "_bucket"))
            samples += [Sample(below, labels, "_count"), Sample(series[-1], labels, "_sum")]
        return Family(self.name, self.help, "histogram", samples)


class Summary(Histogram):
    """Only the sum and the number of values: a series costs two numbers."""

    def __init__(self, name: str, help: str, *labels: str) -> None:  # noqa: A002
        super().__init__(name, help, *labels, bounds=())

    def family(self) -> Family:
        histogram = super().family()
        return Family(self.name, self.help, "summary", [s for s in histogram.samples if s.suffix != "_bucket"])


# ---------------------------------------------------------------------------------------------- the process

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STARTED = time.time()


def _of_process() -> list[Family]:
    """What Prometheus' clients say of their process, by the same names; fewer where /proc does not tell."""
    values: list[tuple[str, str, Kind, float]] = []
    with suppress(OSError, ValueError, IndexError):
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        values = [
            (
                "process_cpu_seconds",
                "Processor time of the process, in seconds.",
                "counter",
                (int(stat[11]) + int(stat[12])) / _TICKS,
            ),
            ("process_threads", "Threads of the process.", "gauge", float(stat[17])),
            ("process_virtual_memory_bytes", "Virtual memory, in bytes.", "gauge", float(stat[20])),
            ("process_resident_memory_bytes", "Resident memory, in bytes.", "gauge", float(stat[21]) * _PAGE),
        ]
    with suppress(OSError):
        values.append(
            ("process_open_fds", "Open file descriptors.", "gauge", float(len(os.listdir("/proc/self/fd")) - 1))
        )
    values.append(
        ("process_start_time_seconds", "When the process began, in seconds since the epoch.", "gauge", _STARTED)
    )
    return [
        Family(name, text, kind, [Sample(value, suffix="_total" if kind == "counter" else "")])
        for name, text, kind, value in values
    ]
