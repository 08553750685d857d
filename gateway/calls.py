"""What a client's call is by its method, and what the beginning of its request says.

The gateway relays most calls unread. To tell which calls belong together it needs the id of a container or a lease, and
of nothing more than these few methods. The id is the first field of the request (or of the message in its first field),
so it is read from the first bytes, without the message's class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from gateway.relay import READS

Key = tuple[str, str, str]
"""What joins calls: kind, namespace, id."""

_QUIET = READS | {
    "Forward",
    "Platform",
    "PluginInfo",
    "Plugins",
    "Publish",
    "Read",
    "Server",
    "ServerReflectionInfo",
    "Wait",
}
"""Methods that change nothing that a client would ask about later."""
_WATCHES = frozenset({"Stream", "Subscribe", "Watch"})
"""Methods that only accompany what other calls do. Nobody waits for their ends, so they have no spans."""
CLEANUP = frozenset(
    {
        "Containers.Delete",
        "Content.Abort",
        "Controller.Shutdown",
        "Controller.Stop",
        "Leases.Delete",
        "Snapshots.Remove",
        "Store.Delete",
        "Tasks.Delete",
        "Tasks.DeleteProcess",
        "Tasks.Kill",
    }
)
"""Methods by which clients take back what failed. Their success does not say that the operation succeeded."""

Subject = Literal["", "container", "lease", "image", "snapshotter", "transfer"]

_SUBJECTS: dict[str, tuple[Subject, tuple[int, ...]]] = {
    "Containers.Create": ("container", (1, 1)),
    "Containers.Update": ("container", (1, 1)),
    "Containers.Get": ("container", (1,)),
    "Containers.Delete": ("container", (1,)),
    "Leases.Create": ("lease", (1,)),
    "Leases.Delete": ("lease", (1,)),
    "Images.Create": ("image", (1, 1)),
    "Images.Update": ("image", (1, 1)),
    "Images.Get": ("image", (1,)),
    "Images.Delete": ("image", (1,)),
    "Snapshots.Stat": ("snapshotter", (1,)),
    "Transfer.Transfer": ("transfer", (1, 1)),
    **{
        f"Tasks.{name}": ("container", (1,))
        for name in (
            "Create",
            "Start",
            "Delete",
            "DeleteProcess",
            "Get",
            "Kill",
            "Exec",
            "ResizePty",
            "CloseIO",
            "Pause",
            "Resume",
            "ListPids",
            "Checkpoint",
            "Update",
            "Wait",
        )
    },
}
"""Methods whose requests begin with what they are about, and where: the numbers of fields, from the outside in."""


_TRANSFERS = {
    ("OCIRegistry", "ImageStore"): "pull",
    ("ImageStore", "OCIRegistry"): "push",
    ("ImageImportStream", "ImageStore"): "import",
    ("ImageStore", "ImageExportStream"): "export",
    ("ImageStore", "ImageStore"): "tag",
}
"""Transfers by the types of their source and destination."""


def transfer(request: bytes) -> tuple[str, str]:
    """What a Transfer is called, and its image's name; each "" if the beginning of the request does not tell."""
    source, destination = (field(request, (side, 1)).rpartition(".")[2] for side in (1, 2))
    name = _TRANSFERS.get((source, destination)) or ("pull" if source == "OCIRegistry" else "")
    sides = [side for side, kind in ((2, destination), (1, source)) if kind == "ImageStore"] or [1]
    return name, field(request, (sides[0], 2, 1))


@dataclass(frozen=True, slots=True)
class Kind:
    """What a method is."""

    name: str
    """``Images.Create``"""
    changes: bool
    watches: bool
    lasts: bool
    """Whether it lasts as long as what it waits for: Wait."""
    subject: Subject
    path: tuple[int, ...]
    """Where the request names its subject."""


@lru_cache(512)
def kind(method: str) -> Kind:
    """What ``/package.Service/Method`` is; clients may send any text here."""
    service, _, name = method[:200].rpartition("/")
    short = f"{service.rpartition('.')[2].strip('/')}.{name}"
    subject, path = _SUBJECTS.get(short, ("", ()))
    return Kind(short, name not in _QUIET | _WATCHES, name in _WATCHES, name == "Wait", subject, path)


def field(message: bytes, path: tuple[int, ...]) -> str:
    """The text at ``path`` in a serialized message of which the beginning is known; "" if it is not there, or cut."""
    at, end = 0, len(message)
    try:
        for wanted in path:
            while True:
                tag, at = _varint(message, at)
                size, at = _content(message, at, tag & 7)
                if tag >> 3 == wanted and tag & 7 == 2:
                    break
                at += size
                if at >= end:
                    return ""
            end = at + size
    except (IndexError, ValueError):
        return ""
    return message[at:end].decode(errors="replace") if end <= len(message) else ""


def _content(message: bytes, at: int, wire: int) -> tuple[int, int]:
    """The size of a field's content, and where it begins."""
    if wire == 2:
        return _varint(message, at)
    if wire == 0:
        return 0, _varint(message, at)[1]
    if wire == 1:
        return 8, at
    if wire == 5:
        return 4, at
    raise ValueError(f"wire type {wire}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = message[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
