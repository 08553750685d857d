"""Messages as text, without what may be secret: for those who watch calls.

What is shown is a table, not what is hidden. A field that nobody has thought of, of a newer API or of a service that is
not ours, is then hidden until somebody has: forgetting to list a field costs a reader one word, while forgetting to
hide one would print a password. Of a hidden field its name and size are shown.

Numbers, enumerations, booleans and times are always shown, since they hold no secret. Strings and bytes are shown only
where :data:`SHOWN` lists them: names, digests and keys, by which a reader recognises a thing. Hidden so are specs
of containers and processes with their environment; credentials, headers and stream names of transfers; options of
mounts and runtimes except the usual ones; data; filters; values of labels, of which only those that containerd and this
node write are shown (nydus-snapshotter's have the password of the registry).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from api.containerd.types import platform_pb2
from api.containerd.types.transfer import imagestore_pb2, importexport_pb2, progress_pb2, registry_pb2
from services.kit import errors

IN_ANY = (platform_pb2, imagestore_pb2, importexport_pb2, progress_pb2, registry_pb2)
"""Modules of messages that travel in an Any. That they are imported makes their types known."""
LONGEST = 1024
"""Characters of a message, at most."""
_VALUE = 200
"""Characters of one string."""
_ITEMS = 8
"""Elements of a repeated field."""
_DEPTH = 6
DECODED = (1 << 20) + (64 << 10)
"""Bytes of a message that is decoded, at most: that of a Write has 1 MiB of data."""

_C, _S, _T = "containerd.services", "splitd", "containerd.types"
SHOWN: Mapping[str, str] = {
    f"{_C}.containers.v1.Container": "id image snapshotter snapshot_key sandbox",
    f"{_C}.containers.v1.Container.Runtime": "name",
    f"{_C}.containers.v1.DeleteContainerRequest": "id",
    f"{_C}.containers.v1.GetContainerRequest": "id",
    f"{_C}.content.v1.AbortRequest": "ref",
    f"{_C}.content.v1.DeleteContentRequest": "digest",
    f"{_C}.content.v1.Info": "digest",
    f"{_C}.content.v1.InfoRequest": "digest",
    f"{_C}.content.v1.ReadContentRequest": "digest",
    f"{_C}.content.v1.Status": "ref expected",
    f"{_C}.content.v1.StatusRequest": "ref",
    f"{_C}.content.v1.WriteContentRequest": "ref expected",
    f"{_C}.content.v1.WriteContentResponse": "digest",
    f"{_C}.diff.v1.DiffRequest": "media_type ref",
    f"{_C}.images.v1.DeleteImageRequest": "name",
    f"{_C}.images.v1.GetImageRequest": "name",
    f"{_C}.images.v1.Image": "name",
    f"{_C}.leases.v1.AddResourceRequest": "id",
    f"{_C}.leases.v1.CreateRequest": "id",
    f"{_C}.leases.v1.DeleteRequest": "id",
    f"{_C}.leases.v1.DeleteResourceRequest": "id",
    f"{_C}.leases.v1.Lease": "id",
    f"{_C}.leases.v1.ListResourcesRequest": "id",
    f"{_C}.leases.v1.Resource": "id type",
    f"{_C}.namespaces.v1.DeleteNamespaceRequest": "name",
    f"{_C}.namespaces.v1.GetNamespaceRequest": "name",
    f"{_C}.namespaces.v1.Namespace": "name",
    f"{_C}.sandbox.v1.ControllerCreateRequest": "sandbox_id netns_path sandboxer",
    f"{_C}.sandbox.v1.ControllerCreateResponse": "sandbox_id",
    f"{_C}.sandbox.v1.ControllerMetricsRequest": "sandbox_id sandboxer",
    f"{_C}.sandbox.v1.ControllerPlatformRequest": "sandbox_id sandboxer",
    f"{_C}.sandbox.v1.ControllerShutdownRequest": "sandbox_id sandboxer",
    f"{_C}.sandbox.v1.ControllerStartRequest": "sandbox_id sandboxer",
    f"{_C}.sandbox.v1.ControllerStartResponse": "sandbox_id address",
    f"{_C}.sandbox.v1.ControllerStatusRequest": "sandbox_id sandboxer",
    f"{_C}.sandbox.v1.ControllerStatusResponse": "sandbox_id state address",
    f"{_C}.sandbox.v1.ControllerStopRequest": "sandbox_id sandboxer",
    f"{_C}.sandbox.v1.ControllerUpdateRequest": "sandbox_id sandboxer fields",
    f"{_C}.sandbox.v1.ControllerWaitRequest": "sandbox_id sandboxer",
    f"{_C}.sandbox.v1.StoreDeleteRequest": "sandbox_id",
    f"{_C}.sandbox.v1.StoreGetRequest": "sandbox_id",
    f"{_C}.sandbox.v1.StoreUpdateRequest": "fields",
    f"{_C}.snapshots.v1.CleanupRequest": "snapshotter",
    f"{_C}.snapshots.v1.CommitSnapshotRequest": "snapshotter name key parent",
    f"{_C}.snapshots.v1.Info": "name parent",
    f"{_C}.snapshots.v1.ListSnapshotsRequest": "snapshotter",
    f"{_C}.snapshots.v1.MountsRequest": "snapshotter key",
    f"{_C}.snapshots.v1.PrepareSnapshotRequest": "snapshotter key parent",
    f"{_C}.snapshots.v1.RemoveSnapshotRequest": "snapshotter key",
    f"{_C}.snapshots.v1.StatSnapshotRequest": "snapshotter key",
    f"{_C}.snapshots.v1.UpdateSnapshotRequest": "snapshotter",
    f"{_C}.snapshots.v1.UsageRequest": "snapshotter key",
    f"{_C}.snapshots.v1.ViewSnapshotRequest": "snapshotter key parent",
    f"{_C}.tasks.v1.CheckpointTaskRequest": "container_id parent_checkpoint",
    f"{_C}.tasks.v1.CloseIORequest": "container_id exec_id",
    f"{_C}.tasks.v1.CreateTaskRequest": "container_id runtime_path",
    f"{_C}.tasks.v1.CreateTaskResponse": "container_id",
    f"{_C}.tasks.v1.DeleteProcessRequest": "container_id exec_id",
    f"{_C}.tasks.v1.DeleteResponse": "id",
    f"{_C}.tasks.v1.DeleteTaskRequest": "container_id",
    f"{_C}.tasks.v1.ExecProcessRequest": "container_id exec_id",
    f"{_C}.tasks.v1.GetRequest": "container_id exec_id",
    f"{_C}.tasks.v1.KillRequest": "container_id exec_id",
    f"{_C}.tasks.v1.ListPidsRequest": "container_id",
    f"{_C}.tasks.v1.PauseTaskRequest": "container_id",
    f"{_C}.tasks.v1.ResizePtyRequest": "container_id exec_id",
    f"{_C}.tasks.v1.ResumeTaskRequest": "container_id",
    f"{_C}.tasks.v1.StartRequest": "container_id exec_id",
    f"{_C}.tasks.v1.UpdateTaskRequest": "container_id",
    f"{_C}.tasks.v1.WaitRequest": "container_id exec_id",
    f"{_T}.Descriptor": "media_type digest",
    f"{_T}.Mount": "type target",
    f"{_T}.Platform": "os architecture variant os_version",
    f"{_T}.Sandbox": "sandbox_id sandboxer",
    f"{_T}.Sandbox.Runtime": "name",
    f"{_T}.transfer.ImageReference": "name",
    f"{_T}.transfer.ImageStore": "name",
    f"{_T}.transfer.OCIRegistry": "reference",
    f"{_T}.transfer.UnpackConfiguration": "snapshotter",
    f"{_T}.transfer.ImageExportStream": "media_type",
    f"{_T}.transfer.ImageImportStream": "media_type",
    f"{_T}.transfer.Progress": "event name",
    "containerd.v1.types.Process": "container_id id",
    "google.protobuf.Any": "type_url",
    "google.protobuf.FieldMask": "paths",
    f"{_S}.localfiles.v1.BeginRequest": "ref expected",
    f"{_S}.localfiles.v1.BeginResponse": "path",
    f"{_S}.localfiles.v1.CommitRequest": "ref digest",
    f"{_S}.localfiles.v1.CommitResponse": "digest",
    f"{_S}.localfiles.v1.LocateRequest": "digest",
    f"{_S}.localfiles.v1.LocateResponse": "path",
    f"{_S}.records.v1.BeginCommitIngestRequest": "ref expected",
    f"{_S}.records.v1.BeginCommitSnapshotRequest": "snapshotter name key parent",
    f"{_S}.records.v1.BeginSnapshotRequest": "snapshotter key parent backend",
    f"{_S}.records.v1.Blob": "digest backend",
    f"{_S}.records.v1.CancelRequest": "intent",
    f"{_S}.records.v1.ConnectRequest": "content snapshotters candidates",
    f"{_S}.records.v1.Event": "namespace topic",
    f"{_S}.records.v1.FinishRequest": "intent digest",
    f"{_S}.records.v1.Finished": "digest",
    f"{_S}.records.v1.ForgetObjectsRequest": "backend",
    f"{_S}.records.v1.GetIngestRequest": "ref",
    f"{_S}.records.v1.Ingest": "ref raw_ref backend expected",
    f"{_S}.records.v1.Intent": "id backend raw_ref raw_key raw_parent raw_name target",
    f"{_S}.records.v1.ListObjectsRequest": "backend",
    f"{_S}.records.v1.Object": "namespace kind name snapshotter containers",
    f"{_S}.records.v1.OpenIngestRequest": "ref expected backend",
    f"{_S}.records.v1.OpenIntents": "ids",
    f"{_S}.records.v1.ResolveBlobRequest": "digest",
    f"{_S}.records.v1.ResolveSnapshotRequest": "snapshotter key",
    f"{_S}.records.v1.Snapshot": "raw_key backend",
    f"{_S}.records.v1.UpdatedSnapshot": "raw_key backend",
    f"{_S}.removals.v1.RemoveRequest": "blobs",
    f"{_S}.removals.v1.Thing": "kind name",
    f"{_S}.snapshotters.v1.Snapshotter": "name platforms capabilities",
}
"""Message to the fields with text that are shown."""

LABELS = frozenset(
    {
        "containerd.io/gc.root",
        "containerd.io/gc.expire",
        "containerd.io/gc.flat",
        "containerd.io/restart.status",
        "containerd.io/snapshot.ref",
        "containerd.io/snapshot/cri.image-ref",
        "containerd.io/snapshot/cri.layer-digest",
        "containerd.io/snapshot/cri.manifest-digest",
        "containerd.io/uncompressed",
        "splitd.io/pid",
        "splitd.io/pull",
    }
)
"""Labels whose values are shown."""
LABEL_PREFIXES = ("containerd.io/gc.ref.", "containerd.io/gc.bref.", "containerd.io/distribution.source.")
"""The same for all that begin so."""

OPTIONS = frozenset({"ro", "rw", "bind", "rbind", "loop", "userxattr", "volatile", "nosuid", "nodev", "noexec"})
OPTION_PREFIXES = ("lowerdir=", "upperdir=", "workdir=", "device=", "index=", "metacopy=", "subvol=", "subvolid=")
"""Options of mounts that are shown. Those of cifs, for example, have a password."""


def text(path: str, data: bytes, *, answer: bool) -> str:
    """A message of a method (``/package.Service/Method``) as one line of text."""
    kind = _kind(path, answer=answer)
    if kind is None:
        return f"({len(data)} bytes of a method that is not known)"
    if len(data) > DECODED:
        return f"({len(data)} bytes, more than are decoded here)"
    try:
        message = message_factory.GetMessageClass(kind).FromString(data)
    except DecodeError:
        return f"({len(data)} bytes that are no {kind.full_name})"
    return shortened(" ".join(_fields(message, 0)), LONGEST)


def shortened(words: str, most: int) -> str:
    """``words``, cut to so many characters."""
    return words if len(words) <= most else f"{words[: most - 3]}..."


def failure(error: errors.NodeError) -> str:
    """An error's message, shortened."""
    return shortened(str(error), _VALUE)


def _kind(path: str, *, answer: bool) -> Descriptor | None:
    service, _, name = path.strip("/").rpartition("/")
    try:
        method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return None
    found: Descriptor = method.output_type if answer else method.input_type
    return found


def _fields(message: Any, depth: int) -> Iterator[str]:
    shown = SHOWN.get(message.DESCRIPTOR.full_name, "").split()
    name = message.DESCRIPTOR.full_name
    for field, value in message.ListFields():
        if name == f"{_T}.Mount" and field.name in ("source", "options"):
            yield f"{field.name}: {_source(message) if field.name == 'source' else _options(value)}"
        elif name == "google.protobuf.Any" and field.name == "value":
            yield _any(message, depth)
        elif _is_map(field):
            yield f"{field.name}: {_map(field, value)}"
        elif field.is_repeated:
            items = [_value(field, each, depth, shown=field.name in shown) for each in value[:_ITEMS]]
            more = [f"and {len(value) - _ITEMS} more"] if len(value) > _ITEMS else []
            yield f"{field.name}: [{', '.join([*items, *more])}]"
        else:
            yield f"{field.name}: {_value(field, value, depth, shown=field.name in shown)}"


def _value(field: FieldDescriptor, value: Any, depth: int, *, shown: bool) -> str:
    if field.message_type is not None:
        if field.message_type.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
            return str(value.ToJsonString())
        return "{...}" if depth >= _DEPTH else "{" + " ".join(_fields(value, depth + 1)) + "}"
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return str(value) if known is None else known.name
    if isinstance(value, str):
        return _quoted(value) if shown else f"({len(value)} characters)"
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(value: str) -> str:
    return f'"{shortened(value, _VALUE)}"'


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _map(field: FieldDescriptor, value: Mapping[Any, Any]) -> str:
    labels = field.name in ("labels", "raw_labels", "annotations")
    parts = []
    for key in sorted(value, key=str)[:_ITEMS]:
        each = value[key]
        if labels and isinstance(each, str) and (key in LABELS or key.startswith(LABEL_PREFIXES)):
            parts.append(f"{key}: {_quoted(each)}")
        else:
            size = f"{len(each)} characters" if isinstance(each, str) else f"{each.ByteSize()} bytes"
            parts.append(f"{shortened(str(key), _VALUE)}: ({size})")
    if len(value) > _ITEMS:
        parts.append(f"and {len(value) - _ITEMS} more")
    return "{" + ", ".join(parts) + "}"


def _any(message: Any, depth: int) -> str:
    """What is in an Any, if its type is in the table, as those of transfers are."""
    kind = message.type_url.rpartition("/")[2]
    if kind in SHOWN and depth < _DEPTH and len(message.value) <= DECODED:
        try:
            found = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(kind))
            return "value: {" + " ".join(_fields(found.FromString(message.value), depth + 1)) + "}"
        except (KeyError, DecodeError):
            pass  # its size is all that can be said
    return f"value: ({len(message.value)} bytes)"


def _source(mount: Any) -> str:
    """The source of a mount, if it is a path, or only the file system's name again: that of a network file system may
    have a password.
    """
    plain = mount.source == mount.type or (mount.source.startswith("/") and not mount.source.startswith("//"))
    return _quoted(mount.source) if plain else f"({len(mount.source)} characters)"


def _options(options: Any) -> str:
    shown = [each for each in options if each in OPTIONS or each.startswith(OPTION_PREFIXES)]
    hidden = len(options) - len(shown)
    return f"[{', '.join([*map(_quoted, shown), *([f'{hidden} more'] if hidden else [])])}]"
