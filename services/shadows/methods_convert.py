"""The methods whose calls are copied: which of them write, what they name, and how a copy is given names of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from api.splitd.localfiles.v1 import localfiles_pb2
from api.splitd.removals.v1 import removals_pb2

Kind = Literal["read", "list", "write"]
"""A list is a read of the whole store, and can be compared only where both services have the same objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How the copies of one method's calls are made."""

    descriptor: MethodDescriptor
    kind: Kind
    uses: tuple[str, ...] = ()
    """The fields, by dotted names, that name an object which must be there."""
    makes: tuple[str, ...] = ()
    """Those that name one which is there afterwards."""
    ends: tuple[str, ...] = ()
    """Those that name one which is gone afterwards."""
    same: bool = False
    """Whether ours is asked again instead of keeping its answers, since these may be many megabytes: what is asked for
    does not change.
    """
    of_files: bool = False
    """Whether the answer depends on files that clients wrote into a snapshot of ours."""

    @property
    def path(self) -> str:
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def name(self) -> str:
        """Such as ``Content/Read``."""
        return f"{self.descriptor.containing_service.name}/{self.descriptor.name}"

    def request(self, data: bytes) -> Message:
        """The request in these bytes. ValueError if it cannot be decoded."""
        try:
            return message_factory.GetMessageClass(self.descriptor.input_type).FromString(data)
        except DecodeError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def answers(self, messages: Sequence[bytes]) -> list[Message]:
        made = message_factory.GetMessageClass(self.descriptor.output_type)
        return [made.FromString(data) for data in messages]


def _methods() -> Iterator[Method]:
    content = content_pb2.DESCRIPTOR.services_by_name["Content"].methods_by_name
    snapshots = snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"].methods_by_name
    yield Method(descriptor=content["Info"], kind="read", uses=("digest",))
    yield Method(descriptor=content["Read"], kind="read", uses=("digest",), same=True)
    yield Method(descriptor=content["Status"], kind="read", uses=("ref",))
    yield Method(descriptor=content["List"], kind="list")
    yield Method(descriptor=content["ListStatuses"], kind="list")
    yield Method(descriptor=content["Write"], kind="write", makes=("ref",))
    yield Method(descriptor=content["Abort"], kind="write", uses=("ref",), ends=("ref",))
    yield Method(descriptor=content["Update"], kind="write", uses=("info.digest",))
    yield Method(descriptor=content["Delete"], kind="write", uses=("digest",), ends=("digest",))
    yield Method(descriptor=snapshots["Stat"], kind="read", uses=("key",))
    yield Method(descriptor=snapshots["Mounts"], kind="read", uses=("key",))
    yield Method(descriptor=snapshots["Usage"], kind="read", uses=("key",), of_files=True)
    yield Method(descriptor=snapshots["List"], kind="list")
    yield Method(descriptor=snapshots["Prepare"], kind="write", uses=("parent",), makes=("key",))
    yield Method(descriptor=snapshots["View"], kind="write", uses=("parent",), makes=("key",))
    yield Method(descriptor=snapshots["Commit"], kind="write", uses=("key", "parent"), makes=("name",), ends=("key",))
    yield Method(descriptor=snapshots["Update"], kind="write", uses=("info.name",))
    yield Method(descriptor=snapshots["Remove"], kind="write", uses=("key",), ends=("key",))
    yield Method(descriptor=snapshots["Cleanup"], kind="write")


METHODS: Mapping[str, Method] = {method.path: method for method in _methods()}
"""By path. Calls of other methods are not copied."""

WRITE = METHODS["/containerd.services.content.v1.Content/Write"]

READ = "/containerd.services.content.v1.Content/Read"

STORED = "/splitd.localfiles.v1.LocalFiles/Commit"
"""A blob that came by a file: the request says its ref, size and digest. The copy is a Write of what ours has."""
REMOVED = "/splitd.removals.v1.Removals/Remove"
"""Many removals in one call: the copies are single ones."""


def names_of(message: Message, fields: Sequence[str]) -> list[str]:
    """The names in these fields of a request, without empty ones."""
    found = []
    for path in fields:
        holder, last = _holder(message, path)
        if name := getattr(holder, last):
            found.append(str(name))
    return found


def renamed(method: Method, message: Any, rename: Callable[[str], str]) -> Any:
    """A copy of the request with other names; digests stay, since they say what the object is."""
    made = type(message)()
    made.CopyFrom(message)
    for path in {*method.uses, *method.makes, *method.ends}:
        holder, last = _holder(made, path)
        if last != "digest" and (name := getattr(holder, last)):
            setattr(holder, last, rename(name))
    return made


def _holder(message: Any, path: str) -> tuple[Any, str]:
    *before, last = path.split(".")
    for part in before:
        message = getattr(message, part)
    return message, last


def stored(request: bytes) -> tuple[str, int, str]:
    """Digest, size in bytes and ref of a blob that came by a file."""
    message = localfiles_pb2.CommitRequest.FromString(request)
    return message.digest, message.size, message.ref


def removals(request: bytes) -> Iterator[tuple[str, bytes]]:
    """The single removals of a call of many: paths and requests."""
    message = removals_pb2.RemoveRequest.FromString(request)
    for digest in message.blobs:
        yield _DELETE, content_pb2.DeleteContentRequest(digest=digest).SerializeToString()
    for thing in message.things:
        if thing.kind == "blob":
            yield _DELETE, content_pb2.DeleteContentRequest(digest=thing.name).SerializeToString()
        elif thing.kind == "ingest":
            yield _ABORT, content_pb2.AbortRequest(ref=thing.name).SerializeToString()
        else:
            yield _REMOVE, snapshots_pb2.RemoveSnapshotRequest(key=thing.name).SerializeToString()


def resumes(opening: Any, answers: Sequence[Any]) -> bool:
    """Whether a Write goes on with an ingest that an earlier one began; ``answers`` has the answer to its opening."""
    return bool(opening.offset or (answers and answers[0].offset > len(opening.data)))


def committed(messages: Sequence[Message]) -> str:
    """The digest that a Write ended with; empty if it did not commit."""
    last: Any = messages[-1] if messages else None
    return str(last.digest) if last is not None and last.action == content_pb2.COMMIT else ""


_DELETE = "/containerd.services.content.v1.Content/Delete"
_ABORT = "/containerd.services.content.v1.Content/Abort"
_REMOVE = "/containerd.services.snapshots.v1.Snapshots/Remove"
