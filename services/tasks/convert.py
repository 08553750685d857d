"""The domain's values as protobuf messages and back: those of the API (server, remote), of shims, and of the records
that are read through the gateway.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from api.containerd.runtime.task.v3 import shim_pb2 as shim
from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.tasks.v1 import tasks_pb2 as pb
from api.containerd.types import introspection_pb2, metrics_pb2
from api.containerd.types.runc.options import oci_pb2
from api.containerd.types.task import task_pb2
from services.kit import gojson
from services.kit.any import unpack
from services.kit.gojson import BOOLEAN, Optional, Struct
from services.kit.timestamps import time_from_pb, time_to_pb
from services.oci.descriptors_convert import descriptor_from_pb, descriptor_to_pb
from services.oci.mounts_convert import mounts_from_pb, mounts_to_pb
from services.oci.opaque_convert import opaque_from_pb, opaque_to_pb
from services.oci.prepared import ALLOWED
from services.tasks.store import IO, Container, CreateOptions, Exit, Metric, Process, ProcessInfo, Status

_STATUSES = frozenset(s.value for s in Status)


def _exited_at(
    message: task_pb2.Process
    | shim.StateResponse
    | pb.DeleteResponse
    | shim.DeleteResponse
    | pb.WaitResponse
    | shim.WaitResponse,
) -> int | None:
    return time_from_pb(message.exited_at) if message.HasField("exited_at") else None


def create_to_pb(name: str, options: CreateOptions) -> pb.CreateTaskRequest:
    io = options.io
    return pb.CreateTaskRequest(
        container_id=name,
        rootfs=mounts_to_pb(options.rootfs),
        stdin=io.stdin,
        stdout=io.stdout,
        stderr=io.stderr,
        terminal=io.terminal,
        checkpoint=None if options.checkpoint is None else descriptor_to_pb(options.checkpoint),
        options=opaque_to_pb(options.options),
        runtime_path=options.runtime,
    )


def create_from_pb(request: pb.CreateTaskRequest) -> CreateOptions:
    return CreateOptions(
        io=IO(request.stdin, request.stdout, request.stderr, request.terminal),
        rootfs=tuple(mounts_from_pb(request.rootfs)),
        checkpoint=descriptor_from_pb(request.checkpoint) if request.HasField("checkpoint") else None,
        options=opaque_from_pb(request.options, present=request.HasField("options")),
        runtime=request.runtime_path,
    )


def process_to_pb(value: Process) -> task_pb2.Process:
    io = value.io
    return task_pb2.Process(
        id=value.id,
        pid=value.pid,
        status=value.status.value,  # type: ignore[arg-type]
        stdin=io.stdin,
        stdout=io.stdout,
        stderr=io.stderr,
        terminal=io.terminal,
        exit_status=value.exit_status,
        exited_at=time_to_pb(value.exited_at),
    )


def process_from_pb(value: task_pb2.Process) -> Process:
    return Process(
        value.id,
        value.pid,
        Status(value.status),
        IO(value.stdin, value.stdout, value.stderr, value.terminal),
        value.exit_status,
        _exited_at(value),
    )


def process_from_shim(name: str, state: shim.StateResponse) -> Process:
    """A shim's answer about the process ``name``; a status that is not known here is UNKNOWN."""
    status = Status(state.status) if state.status in _STATUSES else Status.UNKNOWN
    return Process(
        name,
        state.pid,
        status,
        IO(state.stdin, state.stdout, state.stderr, state.terminal),
        state.exit_status,
        _exited_at(state),
    )


def pids_to_pb(values: Iterable[ProcessInfo]) -> pb.ListPidsResponse:
    return pb.ListPidsResponse(processes=[task_pb2.ProcessInfo(pid=v.pid, info=opaque_to_pb(v.info)) for v in values])


def pids_from_pb(values: Iterable[task_pb2.ProcessInfo]) -> list[ProcessInfo]:
    return [ProcessInfo(v.pid, opaque_from_pb(v.info, present=v.HasField("info"))) for v in values]


def metric_to_pb(value: Metric) -> metrics_pb2.Metric:
    return metrics_pb2.Metric(id=value.id, timestamp=time_to_pb(value.at), data=opaque_to_pb(value.data))


def metric_from_pb(value: metrics_pb2.Metric) -> Metric:
    return Metric(value.id, time_from_pb(value.timestamp), opaque_from_pb(value.data, present=value.HasField("data")))


def delete_to_pb(value: Exit, exec_id: str = "") -> pb.DeleteResponse:
    return pb.DeleteResponse(id=exec_id, pid=value.pid, exit_status=value.status, exited_at=time_to_pb(value.at))


def delete_from_pb(value: pb.DeleteResponse | shim.DeleteResponse) -> Exit:
    """Of the API or of a shim: both have these fields."""
    return Exit(value.exit_status, _exited_at(value), value.pid)


def wait_to_pb(value: Exit) -> pb.WaitResponse:
    return pb.WaitResponse(exit_status=value.status, exited_at=time_to_pb(value.at))


def wait_from_pb(value: pb.WaitResponse | shim.WaitResponse, pid: int = 0) -> Exit:
    """Of the API or of a shim; neither has the pid."""
    return Exit(value.exit_status, _exited_at(value), pid)


def container_from_pb(value: containers_pb2.Container) -> Container:
    return Container(
        value.id,
        value.runtime.name,
        opaque_from_pb(value.runtime.options, present=value.runtime.HasField("options")),
        opaque_from_pb(value.spec, present=value.HasField("spec")),
        value.snapshotter,
        value.snapshot_key,
        dict(value.labels),
        value.image,
        time_from_pb(value.updated_at),
    )


def exec_id_of(info: ProcessInfo) -> str:
    """The exec id in runc's ProcessDetails; empty if the process has none, or another type of details."""
    value = opaque_to_pb(info.info)
    try:
        details = None if value is None else unpack(value, oci_pb2.ProcessDetails)
    except DecodeError:
        return ""
    return "" if details is None else details.exec_id


_FEATURES = Struct(
    {
        "linux": Optional(
            Struct({"mountExtensions": Optional(Struct({"idmap": Optional(Struct({"enabled": BOOLEAN}))}))})
        )
    }
)


def allowed_from_info(output: bytes) -> frozenset[str]:
    """The types of mounts that a shim makes itself, by its RuntimeInfo: ``erofs``, ``format/*``."""
    try:
        info = introspection_pb2.RuntimeInfo.FromString(output)
    except DecodeError:
        return frozenset()
    return frozenset(filter(None, info.annotations.get(ALLOWED, "").split(",")))


def features_from_info(output: bytes) -> dict[str, object] | None:
    """The OCI runtime's features in a shim's RuntimeInfo, as far as they are needed; None if it has none, or of another
    type.
    """
    try:
        info = introspection_pb2.RuntimeInfo.FromString(output)
        found: dict[str, object] | None = (
            gojson.read(info.features.value, _FEATURES)
            if info.features.type_url.endswith("runtime-spec/1/features/Features")
            else None
        )
    except (DecodeError, gojson.Malformed):
        return None
    return found
