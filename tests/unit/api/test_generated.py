"""The generated modules: they can be imported, and have the names that are sent."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import FileDescriptor

from api.containerd.events import image_pb2, task_pb2

ROOT = Path(__file__).resolve().parents[3]
PROTOS = sorted(path.relative_to(ROOT) for path in ROOT.glob("api/**/*.proto"))


def imported(proto: Path) -> FileDescriptor:
    name = ".".join(proto.with_suffix("").parts) + "_pb2"
    descriptor: FileDescriptor = importlib.import_module(name).DESCRIPTOR
    return descriptor


@pytest.mark.parametrize("proto", PROTOS, ids=str)
def test_a_module_is_found_by_its_protos_path(proto: Path) -> None:
    assert imported(proto).name == str(proto)


def test_the_services_are_those_of_the_contract() -> None:
    services = {service.full_name for proto in PROTOS for service in imported(proto).services_by_name.values()}
    assert {name for name in services if name.startswith(("containerd.", "grpc."))} == {
        "containerd.services.containers.v1.Containers",
        "containerd.services.content.v1.Content",
        "containerd.services.diff.v1.Diff",
        "containerd.services.events.ttrpc.v1.Events",
        "containerd.services.events.v1.Events",
        "containerd.services.images.v1.Images",
        "containerd.services.introspection.v1.Introspection",
        "containerd.services.leases.v1.Leases",
        "containerd.services.namespaces.v1.Namespaces",
        "containerd.services.sandbox.v1.Controller",
        "containerd.services.sandbox.v1.Store",
        "containerd.services.snapshots.v1.Snapshots",
        "containerd.services.streaming.v1.Streaming",
        "containerd.services.tasks.v1.Tasks",
        "containerd.services.transfer.v1.Transfer",
        "containerd.services.version.v1.Version",
        "containerd.task.v2.Task",
        "containerd.task.v3.Task",
        "grpc.health.v1.Health",
    }


def test_type_urls_are_full_names() -> None:
    """An event's type URL is its full name; images' events carry the package of their service."""
    assert task_pb2.TaskExit.DESCRIPTOR.full_name == "containerd.events.TaskExit"
    assert image_pb2.ImageCreate.DESCRIPTOR.full_name == "containerd.services.images.v1.ImageCreate"


def test_pack_and_unpack_do_not_speak_bare_type_urls() -> None:
    """Type URLs are set and read by hand because Pack always adds a slash, and Unpack requires one."""
    exit_event = task_pb2.TaskExit(container_id="c", exit_status=137)
    packed = Any()
    packed.Pack(exit_event, type_url_prefix="")
    assert packed.type_url == "/containerd.events.TaskExit"

    bare = Any(type_url=task_pb2.TaskExit.DESCRIPTOR.full_name, value=exit_event.SerializeToString())
    assert bare.type_url == "containerd.events.TaskExit"
    assert not bare.Unpack(task_pb2.TaskExit())
    assert task_pb2.TaskExit.FromString(bare.value) == exit_event


def test_stale_missing_and_left_over_files_are_named(protos: ModuleType) -> None:
    have = {Path("a_pb2.py"): b"old", Path("b_pb2_grpc.py"): b""}
    want = {Path("a_pb2.py"): b"new", Path("c_pb2.pyi"): b""}
    assert protos.differences(have, want) == ["stale: a_pb2.py", "left over: b_pb2_grpc.py", "missing: c_pb2.pyi"]
