"""From the pieces of a critical path to slices that have one reason each.

Most pieces have one reason already. A span that measured where its time went (``splitd.time.*_ms``: a worker's) is
parted by these shares. The share in which a worker had no bytes goes on to the fetch of the same layer. There it is
parted by what that fetch did during the worker's time: it paused, it waited for the first byte, bytes came slowly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
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


class Attribution:
    """The reasons of the pieces of one trace."""

    def __init__(self, tree: Tree, spans: Mapping[tuple[str, str], Node], path: Path) -> None:
        self._trace = tree.root.span.trace
        self._spans = spans
        self._path = path
        self._looks = LOOKS
        self._orphans = orphanage(tree.root)
        self._fetches: dict[str, list[Node]] = {}
        for node in tree.nodes.values():
            if node.span.name in FETCHES and (digest := node.text("oci.layer.digest")):
                self._fetches.setdefault(digest, []).append(node)

    def slices(self, pieces: Sequence[Piece]) -> list[Slice]:
        """The pieces with their reasons, in the same order; together they are as long."""
        return [slice_ for piece in pieces for known in self._known(piece) for slice_ in self._of(known)]

    def _known(self, piece: Piece) -> list[Piece]:
        """The piece; if nothing is known of it, what orphans did in its time."""
        if self._orphans is None or self._shares(piece) or reason_of(piece).kind not in UNEXPLAINED:
            return [piece]
        return [
            replace(piece, start=each.start, end=each.end) if each.node is self._orphans else each
            for each in self._path.of(self._orphans, piece.start, piece.end)
        ]

    def _of(self, piece: Piece) -> list[Slice]:
        shares = self._shares(piece) or {(piece.node, reason_of(piece)): 1.0}
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

    def _shares(self, piece: Piece) -> dict[tuple[Node, Reason], float]:
        """What the piece's span measured, as weights; empty if it measured nothing."""
        node = piece.node
        if reason_of(piece).kind in {Kind.LOCK, Kind.QUEUE}:
            return {}  # it is another operation's worker: what that did is not this one's
        if node.span.name == "registry.transfer":
            return _transfer(piece)
        measured = {
            name: share for name in ("cpu", *SHARES) if (share := node.number(f"splitd.time.{name}_ms")) is not None
        }
        if not measured or not node.length:
            return {}
        weights: dict[tuple[Node, Reason], float] = defaultdict(float)
        rest = measured.pop("cpu", 0.0)
        for name in PROCESSOR:
            share = min(rest, node.number(f"splitd.time.{name}_ms") or 0.0)
            weights[node, Reason(Kind.CPU, name)] += share
            rest -= share
        known = SPANS.get(node.span.name)  # its name says more than a share's does
        weights[node, known if known is not None and known.kind is Kind.CPU else Reason(Kind.CPU, "other")] += rest
        without = measured.pop("bytes", 0.0)
        if not node.span.name.startswith("diff."):
            measured.pop("rest", None)  # it is a worker's
        for name, share in measured.items():
            reason = SHARES[name]
            weights[node, known if known is not None and known.kind is reason.kind is Kind.DISK else reason] += share
        for key, share in self._bytes(node).items():
            weights[key] += share * without
        # what a span measured is not what is below it, such as the commit of a Write
        below = sum(child.length for child in node.children if not child.background)
        missing = (node.length - below) / 1e6 - sum(weights.values())
        if missing > 0:
            weights[node, Reason(Kind.UNKNOWN, text(node.span.name))] += missing
        return {key: weight for key, weight in weights.items() if weight > 0}

    def _bytes(self, worker: Node) -> dict[tuple[Node, Reason], float]:
        """What the layer's fetch did while the worker ran, as shares of 1."""
        fetches = self._fetches_of(worker) if self._looks > 0 else []
        weights: dict[tuple[Node, Reason], float] = defaultdict(float)
        for fetch in fetches:
            self._looks -= 1
            for piece in self._path.of(fetch, worker.start, worker.end):
                # the worker waited for it: so a fetch of another pull is told from one of this pull
                through = replace(piece, waits=(worker, *piece.waits))
                shares = _transfer(through) or {(piece.node, reason_of(through)): 1.0}
                for key, share in shares.items():
                    weights[key] += (piece.end - piece.start) * share / sum(shares.values())
        total = sum(weights.values())
        if not total:
            return {(worker, SHARES["bytes"]): 1.0}
        return {key: weight / total for key, weight in weights.items()}

    def _fetches_of(self, worker: Node) -> list[Node]:
        """The fetches of the worker's layer during its time: by a link, or by the digest. The parts of a blob that
        are fetched side by side are all meant.
        """
        named = linked(worker, self._spans) or self._fetches.get(worker.text("oci.layer.digest"), [])[:MOST]
        running = [fetch for fetch in named if fetch.start < worker.end and fetch.end > worker.start]
        parts = [fetch for fetch in running if fetch.span.name == "registry.fetch"]
        return parts or running


def _transfer(piece: Piece) -> dict[tuple[Node, Reason], float]:
    """Of a transfer, the time without bytes is the network's or the host's; in the rest there were bytes, and the node
    did something with them.
    """
    node, reason = piece.node, reason_of(piece)
    without = node.number("splitd.bytes_ms")
    if without is None or reason.kind is not Kind.NETWORK:
        return {}
    weights: dict[tuple[Node, Reason], float] = {(node, reason): without}
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
