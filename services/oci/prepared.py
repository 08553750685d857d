"""Mounts that are prepared by others, in containerd's form from 2.2 on.

A snapshotter may answer what nobody but the kernel has to mount together. The first mounts are made somewhere, and the
type of a later one says what is to be done with it before it is mounted::

    erofs                   /s/2/index      ro, loop, device=/s/2/data
    erofs                   /s/1/index      ro, loop, device=/s/1/data
    format/mkdir/overlay    overlay         lowerdir={{ overlay 0 1 }}, upperdir=..., workdir=...

*format* fills in where the mounts before are; *mkdir* makes directories that its options name. A shim that makes such
mounts itself, for a virtual machine, says so in its info. For all others somebody makes the first ones, and hands on
those that are left. Workers import this where they need it.
"""

from __future__ import annotations

import re

from services.oci.mounts import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Sequence

ALLOWED = "containerd.io/runtime-allow-mounts"
"""The annotation of a shim's info with the types that it mounts itself, joined by commas: ``erofs``, ``format/*``."""
FORMAT, MKDIR = "format", "mkdir"
_PREFIXES = (FORMAT, MKDIR, "mkfs")
_IMAGE = "erofs"
_MKDIR = "X-containerd.mkdir."
_TEMPLATE = re.compile(r"\{\{\s*(?:(source|target|mount)\s+(\d{1,6})|overlay\s+(\d{1,6})\s+(\d{1,6}))\s*\}\}")


class PreparedError(Exception):
    """A mount that cannot be prepared; the text is for the client."""


def type_of(mount: Mount) -> str:
    """The type that the kernel gets in the end."""
    return _split(mount)[1]


def _split(mount: Mount) -> tuple[tuple[str, ...], str]:
    words = mount.type.split("/")
    at = next((at for at, word in enumerate(words) if word not in _PREFIXES), len(words) - 1)
    return tuple(words[:at]), "/".join(words[at:])


def first(mounts: Sequence[Mount], allowed: Container[str] = ()) -> int:
    """How many of the mounts, from the first one on, somebody has to make for one who takes the ``allowed`` types. The
    mount behind them is to be :func:`filled` then.
    """
    found = 0
    for at, mount in enumerate(mounts):
        prefixes, kind = _split(mount)
        if any(f"{each}/*" not in allowed for each in prefixes) and mount.type not in allowed:
            found = at
        # a shim of runc mounts one image by itself, if that has no data elsewhere
        alone = len(mounts) == 1 and not any(option.startswith("device=") for option in mount.options)
        if kind == _IMAGE and kind not in allowed and not alone:
            found = at + 1
    return found


def needed(mounts: Sequence[Mount], allowed: Container[str] = ()) -> bool:
    """Whether one who takes the ``allowed`` types cannot make these mounts as they are."""
    return bool(first(mounts, allowed)) or any(
        f"{each}/*" not in allowed and mount.type not in allowed for mount in mounts for each in _split(mount)[0]
    )


def filled(mount: Mount, made: Sequence[tuple[Mount, str]]) -> Mount:
    """A mount as it can be made, behind those that were, each with its place. PreparedError."""
    prefixes, kind = _split(mount)
    if not prefixes:
        return mount
    if unknown := [each for each in prefixes if each not in (FORMAT, MKDIR)]:
        raise PreparedError(f"mount type {mount.type}: {unknown[0]}: not implemented")
    if directory := next((option for option in mount.options if option.startswith(_MKDIR)), ""):
        raise PreparedError(f"mount option {directory}: not implemented")
    if FORMAT not in prefixes:
        return mount._replace(type=kind)

    def text(given: str) -> str:
        return _filled(given, made) if "{{" in given else given

    return Mount(kind, text(mount.source), tuple(map(text, mount.options)), text(mount.target))


def _filled(given: str, made: Sequence[tuple[Mount, str]]) -> str:
    def one(word: str) -> tuple[Mount, str]:
        if int(word) >= len(made):
            raise PreparedError(f"mount option {given}: index out of bounds: {word}, has {len(made)} active mounts")
        return made[int(word)]

    def value(found: re.Match[str]) -> str:
        what, number, begin, end = found.groups()
        if what is None:
            step = 1 if int(begin) <= int(end) else -1
            one(max(begin, end, key=int))
            return ":".join(made[at][1] for at in range(int(begin), int(end) + step, step))
        mount, place = one(number)
        return {"source": mount.source, "target": mount.target, "mount": place}[what]

    text = _TEMPLATE.sub(value, given)
    if "{{" in _TEMPLATE.sub("", given):
        raise PreparedError(f"mount option {given}: a template that is not known")
    return text
