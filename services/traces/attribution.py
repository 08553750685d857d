"""From the pieces of a critical path to slices that have one reason each.

Most pieces have one reason already. A span that measured where its time went (``splitd.time.*_ms``: a worker's) is
parted by these shares. The share in which a worker had no bytes goes on to the fetch of the same layer. There it is
parted by what that fetch did during the worker's time: it paused, it waited for the first byte, bytes came slowly. The
time until the first bytes of the layer came belongs to it as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from services.traces.causes import PROCESSOR, SHARES, SPANS, UNEXPLAINED, Kind, Reason, Slice, reason_of
from services.traces.critical_path import Path, Piece, linked, orphanage
from services.traces.tree import Node, Tree, text

FETCHES = ("registry.fetch", "images.layer")
"""The spans that get a layer's bytes."""

TAKING = Reason(Kind.UNKNOWN, "taking bytes in")
"""What the node did with bytes that had come: it was not measured."""
_TAKEN = {"disk": SHARES["disk"], "runqueue": SHARES["runqueue"], "cpu": Reason(Kind.CPU, "digest")}
"""The reason of ``splitd.taking.NAME_ms`` of a fetch."""

MOST = 64
"""Fetches of one layer that are looked at, such as those of its parts."""

LOOKS = 20_000
"""Fetches that are looked at for all workers together. Beyond that the time of a worker without bytes is only that."""


Shares = dict[tuple[Node, Reason], float]
"""Weights of reasons, and the spans they are told by."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """How the bytes of a layer came to its worker."""

    first: int
    """Nanoseconds of the worker until there were any."""
    before: Shares
    """What it waited for until then, and when it had none later; as shares of 1."""
    after: Shares


class Attribution:
    """The reasons of the pieces of one trace."""

    def __init__(self, tree: Tree, spans: Mapping[tuple[str, str], Node], path: Path) -> None:
        self._trace = tree.root.span.trace
        self._spans = spans
        self._path = path
        self._looks = LOOKS
        self._orphans = orphanage(tree.root)
        self._arrivals: dict[Node, Arrival] = {}
        self._fetches: dict[str, list[Node]] = {}
        for node in tree.nodes.values():
            if node.span.name in FETCHES and (digest := node.text("oci.layer.digest")):
                self._fetches.setdefault(digest, []).append(node)

    def slices(self, pieces: Sequence[Piece]) -> list[Slice]:
        """The pieces with their reasons, in the same order; together they are as long."""
        return [slice_ for piece in pieces for known in self._known(piece) for slice_ in self._of(known)]

    def _known(self, piece: Piece) -> list[Piece]:
        """The piece; if nothing is known of it, what its children did in its time, and then what orphans did."""
        if not _is_unexplained(piece):
            return [piece]
        return [each for found in self._path.beside(piece) for each in self._or_orphans(found)]

    def _or_orphans(self, piece: Piece) -> list[Piece]:
        if self._orphans is None or not _is_unexplained(piece):
            return [piece]
        return [
            replace(piece, start=each.start, end=each.end) if each.node is self._orphans else each
            for each in self._path.of(self._orphans, piece.start, piece.end)
        ]

    def _of(self, piece: Piece) -> list[Slice]:
        return [slice_ for part, shares in self._shares(piece) for slice_ in self._divided(part, shares)]

    def _divided(self, piece: Piece, shares: Shares) -> list[Slice]:
        found, at = [], piece.start
        for (node, reason), length in zip(shares, divided(piece.end - piece.start, list(shares.values())), strict=True):
            if length:
                found.append(self._slice(piece, node, at, at + length, reason))
                at += length
        return found

    def _slice(self, piece: Piece, node: Node, start: int, end: int, reason: Reason) -> Slice:
        # A layer of another pull is not this one's: then the wait says which of its own layers waited.
        own = [at for at in (node, *reversed(piece.waits), piece.node) if at.span.trace == self._trace]
        about = next((at for at in own if at.text("oci.layer.digest")), None)
        numbers = (at.number("splitd.layer") for at in about.up()) if about is not None else ()
        layer = next((number for number in numbers if number is not None), None)
        return Slice(
            node,
            start,
            end,
            reason,
            layer=None if layer is None else int(layer),
            digest="" if about is None else about.text("oci.layer.digest"),
            waits=piece.waits,
        )

    def _shares(self, piece: Piece) -> list[tuple[Piece, Shares]]:
        """The piece with the weights of its reasons; in two if its span had no bytes at first."""
        node, reason = piece.node, reason_of(piece)
        alone: Shares = {(node, reason): 1.0}
        # Of another operation's worker: what that did is not this one's.
        measured = {} if reason.kind in {Kind.LOCK, Kind.QUEUE} else _measured(node)
        if not measured:
            return [(piece, _transfer(piece) or alone)]
        arrival = self._arrival(node, measured.get("bytes", 0.0))
        at = min(piece.end, max(piece.start, node.start + arrival.first))
        found = [(replace(piece, end=at), arrival.before)] if at > piece.start else []
        if piece.end > at:
            found.append((replace(piece, start=at), self._spent(node, measured, arrival) or alone))
        return found

    @staticmethod
    def _spent(node: Node, measured: dict[str, float], arrival: Arrival) -> Shares:
        """What a span measured, without the time before its first bytes."""
        weights: Shares = defaultdict(float)
        measured = dict(measured)
        rest = measured.pop("cpu", 0.0)
        for name in PROCESSOR:
            share = min(rest, node.number(f"splitd.time.{name}_ms") or 0.0)
            weights[node, Reason(Kind.CPU, name)] += share
            rest -= share
        known = SPANS.get(node.span.name)  # its name says more than a share's does
        weights[node, known if known is not None and known.kind is Kind.CPU else Reason(Kind.CPU, "other")] += rest
        first = arrival.first / 1e6
        without = max(0.0, measured.pop("bytes", 0.0) - first)
        if not node.span.name.startswith("diff."):
            measured.pop("rest", None)  # it is a worker's
        for name, share in measured.items():
            reason = SHARES[name]
            weights[node, known if known is not None and known.kind is reason.kind is Kind.DISK else reason] += share
        for key, share in arrival.after.items():
            weights[key] += share * without
        # what a span measured is not what is below it, such as the commit of a Write
        below = sum(child.length for child in node.children if not child.background)
        missing = (node.length - below) / 1e6 - first - sum(weights.values())
        if missing > 0:
            weights[node, Reason(Kind.UNKNOWN, text(node.span.name))] += missing
        return {key: weight for key, weight in weights.items() if weight > 0}

    def _arrival(self, worker: Node, without: float) -> Arrival:
        """How the bytes came to a worker that had none for ``without`` milliseconds."""
        known = self._arrivals.get(worker)
        if known is None:
            known = self._arrivals[worker] = self._arrived(worker, round(without * 1e6))
        return known

    def _arrived(self, worker: Node, without: int) -> Arrival:
        fetches = self._fetches_of(worker) if without and self._looks > 0 else []
        self._looks -= len(fetches)
        # The worker waited for it: so a fetch of another pull is told from one of this pull.
        paths = [
            [
                replace(piece, waits=(worker, *piece.waits))
                for part in self._path.of(fetch, worker.start, worker.end)
                for piece in (self._path.beside(part) if _is_unexplained(part) else [part])
            ]
            for fetch in fetches
        ]
        first = min((_first_bytes(path, fetch.end) for path, fetch in zip(paths, fetches, strict=True)), default=0)
        first = min(without, max(0, first - worker.start))
        before: Shares = defaultdict(float)
        after: Shares = defaultdict(float)
        at = worker.start + first
        for piece in (piece for path in paths for piece in path):
            shares = _transfer(piece) or {(piece.node, reason_of(piece)): 1.0}
            for key, share in shares.items():
                part = share / sum(shares.values())
                before[key] += max(0, min(piece.end, at) - piece.start) * part
                after[key] += max(0, piece.end - max(piece.start, at)) * part
        alone: Shares = {(worker, SHARES["bytes"]): 1.0}
        return Arrival(first, _normed(before) or alone, _normed(after) or alone)

    def _fetches_of(self, worker: Node) -> list[Node]:
        """The fetches of the worker's layer during its time: by a link, or by the digest. The parts of a blob that
        are fetched side by side are all meant.
        """
        named = linked(worker, self._spans) or self._fetches.get(worker.text("oci.layer.digest"), [])[:MOST]
        running = [fetch for fetch in named if fetch.start < worker.end and fetch.end > worker.start]
        parts = [fetch for fetch in running if fetch.span.name == "registry.fetch"]
        return parts or running


def _is_unexplained(piece: Piece) -> bool:
    return reason_of(piece).kind in UNEXPLAINED and not _measured(piece.node)


def _measured(node: Node) -> dict[str, float]:
    """The shares of its time that a span measured, in milliseconds."""
    if not node.length:
        return {}
    shares = {name: node.number(f"splitd.time.{name}_ms") for name in ("cpu", *SHARES)}
    return {name: share for name, share in shares.items() if share is not None}


def _first_bytes(path: Sequence[Piece], end: int) -> int:
    """When the first bytes came on the path of a fetch that ended at ``end``; 0 if the layer had bytes before, from an
    earlier attempt. A transfer that has no span took no time.
    """
    transfer = next((piece for piece in path if piece.node.span.name == "registry.transfer"), None)
    at = end if transfer is None else transfer.start
    fetch = next((n for piece in path for n in piece.node.up() if n.span.name == "registry.fetch"), None)
    return 0 if fetch is not None and fetch.number("splitd.offset") else at


def _normed(weights: Shares) -> Shares:
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items() if weight} if total else {}


def _transfer(piece: Piece) -> Shares:
    """Of a transfer, the time without bytes is the network's or the host's; in the rest there were bytes, and the node
    did something with them.
    """
    node, reason = piece.node, reason_of(piece)
    without = node.number("splitd.bytes_ms")
    if without is None or reason.kind not in (Kind.NETWORK, Kind.PEER):
        return {}
    weights: Shares = {(node, reason): without}
    left = max(0.0, node.length / 1e6 - without)
    fetch = next((each for each in node.up() if each.span.name == "registry.fetch"), node)
    for name, known in _TAKEN.items():
        took = min(left, fetch.number(f"splitd.taking.{name}_ms") or 0.0)
        weights[node, known] = took
        left -= took
    weights[node, TAKING] = left
    return {key: weight for key, weight in weights.items() if weight > 0}


def divided(length: int, weights: Sequence[float]) -> list[int]:
    """``length`` in whole parts in the proportion of ``weights``; they add up to it."""
    total = sum(weights)
    ends = [0]
    reached = 0.0
    for weight in weights:
        reached += weight
        ends.append(min(length, round(length * (reached / total))))
    ends[-1] = length
    return [end - start for start, end in pairwise(ends)]
