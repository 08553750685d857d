"""The cgroup figures of containers, by containerd's names."""

from __future__ import annotations

from api.containerd.cgroups.v1 import metrics_pb2 as v1
from api.containerd.cgroups.v2 import metrics_pb2 as v2
from services.oci.opaque import Opaque
from services.tasks.metrics_convert import families
from services.tasks.store import Metric


def shown(message: v1.Metrics | v2.Metrics, prefix: str = "") -> dict[str, list[tuple[dict[str, str], float]]]:
    """The samples of each family, of a task ``c`` in namespace ``n``."""
    data = Opaque(prefix + message.DESCRIPTOR.full_name, message.SerializeToString())
    return {
        family.name: [(dict(s.labels), s.value) for s in family.samples]
        for family in families([("n", "/usr/bin/containerd-shim-runc-v2", Metric("c", 0, data))])
    }


OWN = {"container_id": "c", "namespace": "n", "runtime": "io.containerd.runc.v2"}


def test_the_figures_of_cgroup_v1() -> None:
    message = v1.Metrics(
        pids=v1.PidsStat(current=3, limit=100),
        cpu=v1.CPUStat(usage=v1.CPUUsage(total=9, kernel=4, user=5, per_cpu=[2, 7])),
        memory=v1.MemoryStat(rss=4096, pg_fault=11, total_pg_maj_fault=2, usage=v1.MemoryEntry(usage=8192, failcnt=1)),
        blkio=v1.BlkIOStat(
            io_service_bytes_recursive=[v1.BlkIOEntry(op="Read", device="/dev/sda", major=8, minor=0, value=512)]
        ),
        hugetlb=[v1.HugetlbStat(pagesize="2MB", usage=1, max=2, failcnt=3)],
    )
    found = shown(message)
    expected = {
        "container_pids_current": 3,
        "container_pids_limit": 100,
        "container_cpu_total_nanoseconds": 9,
        "container_cpu_kernel_nanoseconds": 4,
        "container_cpu_user_nanoseconds": 5,
        "container_memory_rss_bytes": 4096,
        "container_memory_pgfault_bytes": 11,
        "container_memory_total_pgmajfault_bytes": 2,
        "container_memory_usage_usage_bytes": 8192,
        "container_memory_usage_failcnt_total": 1,
    }
    assert {name: found[name] for name in expected} == {name: [(OWN, value)] for name, value in expected.items()}
    assert found["container_per_cpu_nanoseconds"] == [({**OWN, "cpu": "0"}, 2), ({**OWN, "cpu": "1"}, 7)]
    assert found["container_hugetlb_max_bytes"] == [({**OWN, "page": "2MB"}, 2)]
    assert found["container_blkio_io_service_bytes_recursive_bytes"] == [
        ({**OWN, "op": "Read", "device": "/dev/sda", "major": "8", "minor": "0"}, 512)
    ]
    assert "container_memory_swap_usage_bytes" not in found  # the kernel does not account for swap there
    assert "container_cpu_throttled_time_nanoseconds" not in found


def test_the_figures_of_cgroup_v2() -> None:
    message = v2.Metrics(
        pids=v2.PidsStat(current=3, limit=100),
        cpu=v2.CPUStat(usage_usec=9),
        memory=v2.MemoryStat(usage=4096, anon=7, slab=8),
        io=v2.IOStat(usage=[v2.IOEntry(major=8, minor=1, rbytes=5, wios=6)]),
        memory_events=v2.MemoryEvents(oom=2),
    )
    found = shown(message, prefix="type.googleapis.com/")
    expected = {
        "container_pids_current": 3,
        "container_cpu_usage_usec_microseconds": 9,
        "container_memory_usage_bytes": 4096,
        "container_memory_anon_bytes": 7,
        "container_memory_slab_bytes": 8,
        "container_memory_oom_total": 2,
    }
    assert {name: found[name] for name in expected} == {name: [(OWN, value)] for name, value in expected.items()}
    device = {**OWN, "major": "8", "minor": "1"}
    assert found["container_io_rbytes_bytes"] == [(device, 5)]
    assert found["container_io_wios_total"] == [(device, 6)]


def test_what_is_no_cgroups_figures_is_not_shown() -> None:
    others = [None, Opaque("io.example.Stats", b"\x08\x01"), Opaque("io.containerd.cgroups.v1.Metrics", b"\xff")]
    assert families([("n", "/opt/shim", Metric("c", 0, data)) for data in others]) == []
