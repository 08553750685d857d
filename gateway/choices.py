"""Which calls an operator means: those of a service's route, of one method, in one namespace.

SERVICE is the name of a route: ``content``, ``metadata``, ``images``, ``tasks``, ``diff``, ``snapshots.NAME`` of one
snapshotter, or ``snapshots`` of all of them, and so with ``sandbox.NAME`` of sandbox controllers. A candidate's own
name, such as ``content@mine``, means that one alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from services.kit import errors, identifiers
from services.kit.rpc import NAMESPACE, Headers

Methods = Mapping[str, Collection[str]]
"""Kind of route (``snapshots`` for all snapshotters) to the names of the methods whose calls leave by it."""


_SEVERAL = ("snapshots", "sandbox")
"""Kinds of which there may be several services."""
_SOME = 12
"""Methods that an error names."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Calls that were chosen. An empty field, and ``*`` as the method, means all."""

    service: str = ""
    method: str = "*"
    namespace: str = ""

    def stands_at(self, upstream: str) -> bool:
        """Whether calls to this upstream are meant."""
        route = upstream.partition("@")[0]
        return self.service in ("", upstream, route) or (self.service in _SEVERAL and _kind(route) == self.service)

    def means(self, path: str, headers: Headers) -> bool:
        """Whether a call to such an upstream is meant."""
        return (self.method == "*" or path.rpartition("/")[2] == self.method) and (
            not self.namespace or headers.get(NAMESPACE, "") == self.namespace
        )

    def __str__(self) -> str:
        where = f"{self.service or 'all services'}.{self.method}"
        return f"{where} in namespace {self.namespace}" if self.namespace else where


def _nearest(name: str, names: list[str]) -> str:
    """The name that was probably meant; "" if there is none."""
    from difflib import get_close_matches  # 0.7 MB, for an error

    return next(iter(get_close_matches(name, names, 1)), "")


def choice(service: str, method: str, namespace: str, known: Iterable[str], methods: Methods) -> Choice:
    """The choice of an operator; ``known`` has the names of the upstreams. InvalidArgument, with what would be right,
    if there is no such service or method.
    """
    known = list(known)
    names = sorted({*known, "snapshots", *(kind for kind in _SEVERAL if kind in map(_kind, known))})
    if service and service not in names:
        near = _nearest(service, names)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(names)}"
        raise errors.InvalidArgument(f"service {service[:100]!r} is not known ({hint})")
    method = method or "*"
    kind = _kind(service)
    there = sorted({name for each, found in methods.items() if kind in ("", each) for name in found})
    if method not in ("*", *there):
        near = _nearest(method, there)
        some = f"{', '.join(there[:_SOME])} and {len(there) - _SOME} more" if len(there) > _SOME else ", ".join(there)
        hint = f"did you mean {near}?" if near else f"it has {some}"
        raise errors.InvalidArgument(f"{service or 'the node'} has no method {method[:100]!r} ({hint})")
    if namespace:
        try:
            identifiers.validate(namespace)
        except errors.InvalidArgument:
            raise errors.InvalidArgument(
                f"namespace {namespace[:80]!r} cannot be one: it has 1 to 76 letters, digits, and single '.', '_' and "
                "'-' between them"
            ) from None
    return Choice(service, method, namespace)


def _kind(name: str) -> str:
    return name.partition("@")[0].partition(".")[0]
