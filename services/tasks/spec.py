"""The OCI spec of a container, as far as it is read here. Clients write it and the runtime reads it, so it is never
changed here, and the fields that are not listed may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from services.kit import errors, gojson
from services.kit.gojson import BOOLEAN, TEXT, UINT32, ListOf, MapOf, Optional, Struct

T = TypeVar("T")

_MAPPINGS = ListOf(Struct({"containerID": UINT32, "hostID": UINT32}))
_SPEC = Struct(
    {
        "annotations": MapOf(TEXT),
        "process": Optional(Struct({"terminal": BOOLEAN})),
        "mounts": ListOf(Struct({"options": ListOf(TEXT), "uidMappings": _MAPPINGS, "gidMappings": _MAPPINGS})),
        "linux": Optional(
            Struct(
                {
                    "mountLabel": TEXT,
                    "namespaces": ListOf(Struct({"type": TEXT, "path": TEXT})),
                    "gidMappings": _MAPPINGS,
                }
            )
        ),
    }
)


def read(spec: bytes, what: str = "spec", kind: type[errors.NodeError] = errors.Unknown) -> dict[str, Any]:
    """The listed fields, as ``kit.gojson`` reads them. An error of ``kind`` that begins with ``what`` if malformed."""
    found: dict[str, Any] = gojson.document(spec, _SPEC, what, kind)
    return found


async def looked_into(spec: bytes, look: Callable[[bytes], T]) -> T:
    """The result of ``look``, which runs apart if the spec is large."""
    return await gojson.apart(len(spec), lambda: look(spec))


def own_pids(spec: dict[str, Any]) -> bool:
    """Return whether the task has a pid namespace of its own: then all its processes die with its init."""
    return any(
        each.get("type") == "pid" and not each.get("path") for each in (spec.get("linux") or {}).get("namespaces") or ()
    )


def remapped_gid(spec: bytes) -> int:
    """The host's group for group 0 of the user namespace; 0 if there is none. Unknown if the spec is malformed."""
    if not _may_say(spec, b"gidmappings"):
        return 0
    mappings = (read(spec).get("linux") or {}).get("gidMappings") or ()
    return next((each.get("hostID", 0) for each in mappings if not each.get("containerID")), 0)


def uses_id_mapped_mounts(spec: bytes) -> bool:
    """Return whether a mount has mapped ids. InvalidArgument if the spec is malformed."""
    if not _may_say(spec, b"idmap") and not _may_say(spec, b"uidmappings"):
        return False
    mounts = read(spec, "unmarshal spec", errors.InvalidArgument).get("mounts") or ()
    return any(
        each.get("uidMappings") is not None
        or each.get("gidMappings") is not None
        or {"idmap", "ridmap"} & set(each.get("options") or ())
        for each in mounts
    )


def _may_say(spec: bytes, word: bytes) -> bool:
    """Return whether the spec may contain the lower case ``word``, in any spelling that Go accepts. Most specs do not
    mention ids, and need not be parsed.
    """
    spec = spec.lower()
    return word in spec or b"\\u" in spec or b"\xc5\xbf" in spec  # that letter is an s to Go
