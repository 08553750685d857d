"""Platforms of images: which platform fits which, and which is preferred, as containerd matches them.

A platform names an operating system, an architecture and perhaps a variant (``linux/arm/v7``). The same platform has
several spellings; :meth:`Platform.normalized` picks one. A :class:`Matcher` says which platforms are wanted, and which
of two is preferred.
"""

from __future__ import annotations

import functools
import platform as host
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

T = TypeVar("T")

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
"""The kernel's names of machines that OCI names differently."""

_SPELLINGS = {
    "i386": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
"""Other spellings of an architecture, and the variant that they imply; None if they imply none."""

_VARIANTS = {
    ("amd64", "v1"): "",
    ("arm64", "8"): "",
    ("arm64", "v8"): "",
    ("arm64", "v8.0"): "",
    ("arm64", "9"): "v9",
    ("arm64", "9.0"): "v9",
    ("arm64", "v9.0"): "v9",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
}


@dataclass(frozen=True, slots=True)
class Platform:
    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def normalized(self) -> Platform:
        """The spelling that is compared. A missing operating system becomes linux."""
        system = self.os.lower() or "linux"
        architecture, variant = self.architecture.lower(), self.variant.lower()
        if architecture in _SPELLINGS:
            architecture, implied = _SPELLINGS[architecture]
            variant = variant if implied is None else implied
        variant = _VARIANTS.get((architecture, variant), variant)
        return Platform(
            "darwin" if system == "macos" else system,
            architecture,
            variant,
            self.os_version,
            tuple(sorted(set(self.os_features))),
        )

    def __str__(self) -> str:
        if not self.os:
            return "unknown"
        features = "".join(f"+{each}" for each in self.os_features)
        system = f"{self.os}({features})" if features else self.os
        return "/".join(part for part in (system, self.architecture, self.variant) if part)


def default() -> Platform:
    """The platform of this machine."""
    machine = host.machine()
    return Platform("linux", *_MACHINES.get(machine, (machine, "")))


EROFS = "erofs"
"""The feature of a platform whose images have layers that are EROFS images; the snapshotter of this name takes them."""
_SYSTEMS = frozenset({"linux", "windows", "darwin", "macos", "freebsd"})
_SPECIFIER = re.compile(
    r"(?P<os>[A-Za-z0-9_.-]+)(?:\((?P<options>[A-Za-z0-9_.:+-]*)\))?(?:/(?P<architecture>[A-Za-z0-9_.-]+)(?:/(?P<variant>[A-Za-z0-9_.-]+))?)?"
)


def parse(text: str) -> Platform:
    """Parse ``OS``, ``ARCHITECTURE``, ``OS/ARCHITECTURE`` or ``OS/ARCHITECTURE/VARIANT``. A missing part is this
    machine's.

    An OS may be followed by its version and features in parentheses (``linux(+erofs)/amd64``). ValueError for anything
    else.
    """
    found = _SPECIFIER.fullmatch(text)
    if found is None:
        raise ValueError(f"platform: {text!r} is not a platform such as linux/amd64")
    system, architecture = found["os"], found["architecture"]
    if architecture is None and found["options"] is None and system.lower() not in _SYSTEMS:
        return Platform(default().os, system).normalized()
    version, *features = (found["options"] or "").split("+")
    here = default()
    own = here if architecture is None else Platform("", architecture, found["variant"] or "")
    return Platform(
        system, own.architecture, own.variant, version, tuple(each for each in features if each)
    ).normalized()


class Matcher(Protocol):
    """The platforms that are wanted."""

    def matches(self, platform: Platform) -> bool:
        """Whether ``platform`` is wanted at all."""
        ...

    def before(self, one: Platform, other: Platform) -> bool:
        """Whether ``one`` is preferred to ``other``."""
        ...


class Everything:
    """Wants any platform, with no preference."""

    def matches(self, platform: Platform) -> bool:
        return True

    def before(self, one: Platform, other: Platform) -> bool:
        return False


class Ordered:
    """Wants any of ``wanted``, and prefers the earlier ones."""

    def __init__(self, *wanted: Platform) -> None:
        self._wanted = [p.normalized() for p in wanted]

    def matches(self, platform: Platform) -> bool:
        return any(_fits(wanted, platform) for wanted in self._wanted)

    def before(self, one: Platform, other: Platform) -> bool:
        for wanted in self._wanted:
            first, second = _fits(wanted, one), _fits(wanted, other)
            if first and second:
                return len(one.os_features) > len(other.os_features)
            if first or second:
                return first
        if one.os_features or other.os_features:
            return self.before(replace(one, os_features=()), replace(other, os_features=()))
        return False


class OnlySystem:
    """Wants every platform with the operating system of ``wanted``, and prefers its architecture."""

    def __init__(self, wanted: Platform) -> None:
        self._wanted = wanted.normalized()
        self._order = Ordered(wanted)

    def matches(self, platform: Platform) -> bool:
        return _fits_system(self._wanted, platform.normalized())

    def before(self, one: Platform, other: Platform) -> bool:
        first, second = self.matches(one), self.matches(other)
        return self._order.before(one, other) if first and second else first


def runs(platform: Platform, features: Iterable[str] = (EROFS,)) -> bool:
    """Whether this machine runs images for a platform, whatever their architecture, if it has these ``features``."""
    return OnlySystem(replace(default(), os_features=tuple(features))).matches(platform)


def wanted(platforms: Iterable[Platform]) -> Matcher:
    """A matcher for these platforms, in order of preference; for all platforms if there are none."""
    listed = tuple(platforms)
    return Ordered(*listed) if listed else Everything()


_NAMED = 8
_NAME = 60
"""Platforms that a message names, and characters of each: they come from documents of others."""


def named(platforms: Iterable[Platform]) -> str:
    """``linux/arm64, linux/s390x``: each once, for a message. Of many platforms, the first ones and the number of the
    others.
    """
    names = list(dict.fromkeys(text if len(text := str(each)) <= _NAME else f"{text[:_NAME]}..." for each in platforms))
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def in_order(things: Iterable[T], platform: Callable[[T], Platform | None], matcher: Matcher) -> list[T]:
    """``things`` sorted by preference, those without a platform last. Equals keep their order."""

    def compare(one: T, other: T) -> int:
        first, second = platform(one), platform(other)
        if first is None or second is None:
            return (first is None) - (second is None)
        return matcher.before(second, first) - matcher.before(first, second)

    return sorted(things, key=functools.cmp_to_key(compare))


def _fits(wanted: Platform, found: Platform) -> bool:
    found = found.normalized()
    return (wanted.architecture, wanted.variant) == (found.architecture, found.variant) and _fits_system(wanted, found)


def _fits_system(wanted: Platform, found: Platform) -> bool:
    if wanted.os != found.os:
        return False
    features = set(found.os_features)
    if wanted.os == "windows":
        features.discard("win32k")
        version = wanted.os_version.split(".")[:3]
        if version != [""] and found.os_version.split(".")[:3] != version:
            return False
    return features <= set(wanted.os_features)
