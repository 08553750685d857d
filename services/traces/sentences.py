"""The words of a verdict.

The sentence names the kind of cause that took most of the time, with the host, the layer or the holder, and up to two
more that took a good part of it. The advice says what is saved at best if the first goes away: all of its time on the
critical path, and no more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from services.traces.causes import UNEXPLAINED, Cause, Kind, Reason, Slice
from services.traces.store import FAILED, Head, Status
from services.traces.tree import Node, Tree, text

MOSTLY = 0.8
"""A cause whose time is to this part about one layer is said to be about that layer."""

STANDS_OUT = 0.2
"""An advice is about a cause that has this share of the time."""

OUTSIDE = {Kind.REGISTRY, Kind.MIRROR, Kind.PEER, Kind.LOCK, Kind.QUEUE, Kind.CLIENT, Kind.VERIFIER}
"""Somebody else held the operation up: none of it is the operation's own work."""

ALSO = 0.1
"""Of ``OUTSIDE``, what has this share of the time is named, too, if something else took more; of the rest, what has
``STANDS_OUT``.
"""

MORE = 2
"""Kinds of cause that are named after the first."""

WORTH = 0.2
"""Seconds that an advice saves at least, and that another kind of cause took at least to be named, too."""

SHORT, TRIFLE = 0.5, 0.02
"""Of an operation shorter than ``SHORT`` seconds, the sentence lists no cause below ``TRIFLE``."""

CANCELLED = "cancelled"

_MANY = 4
"""Layers that are named one by one."""

IDLE = 0.1
"""Less than this share of the time on a processor or the disk is nothing to speak of."""

_WHAT = {
    (Kind.REGISTRY, "auth"): "waiting for a token{of_host}",
    (Kind.REGISTRY, "first byte"): "waiting for the first byte{of_layer} from {host}",
    (Kind.REGISTRY, "rate limit"): "pausing{layer} because {host} limits the rate of requests",
    (Kind.REGISTRY, "asked to wait"): "pausing{layer} because {host} asked for it",
    (Kind.REGISTRY, "retry"): "pausing{layer} before a retry at {host}",
    (Kind.NETWORK, "bandwidth"): "waiting for bytes{of_layer} from {host}{rate}{by}",
    (Kind.NETWORK, "bytes"): "waiting for bytes{of_layer}",
    (Kind.NETWORK, "connect"): "connecting to {host}",
    (Kind.NETWORK, "DNS"): "looking up the address of {host}",
    (Kind.NETWORK, "TLS"): "agreeing on TLS with {host}",
    (Kind.NETWORK, "upload"): "sending bytes to {host}",
    (Kind.MIRROR, "dead"): "trying the mirror {host}, which did not serve",
    (Kind.MIRROR, "slow"): "bytes{of_layer} from the mirror {host}, which was given up",
    (Kind.MIRROR, "first byte"): "waiting for the first byte{of_layer} from the mirror {host}",
    (Kind.PEER, "bandwidth"): "waiting for bytes{of_layer} from {host}{rate}",
    (Kind.PEER, "first byte"): "waiting for the first byte{of_layer} from {host}",
    (Kind.PEER, "given up"): "bytes{of_layer} from {host}, which was given up",
    (Kind.PEER, "dead"): "trying {host}, which did not serve",
    (Kind.PEER, "connect"): "connecting to {host}",
    (Kind.PEER, "DNS"): "looking up the address of {host}",
    (Kind.PEER, "TLS"): "agreeing on TLS with {host}",
    (Kind.PEER, "claim"): "asking the fleet who fetches{layer}",
    (Kind.CPU, "no processor free"): "waiting for a processor to be free{layer}",
    (Kind.CPU, "inflate"): "inflating{layer}",
    (Kind.CPU, "compress"): "compressing{layer}",
    (Kind.CPU, "digest"): "computing digests{layer}",
    (Kind.CPU, "files"): "making files on a processor{layer}",
    (Kind.CPU, "other"): "working on a processor{layer}",
    (Kind.DISK, "write"): "writing to the disk{layer}",
    (Kind.DISK, "fsync"): "waiting until the disk has it{layer}",
    (Kind.DISK, "copy"): "copying files on the disk{layer}",
    (Kind.QUEUE, "budget"): "waiting for a place{holder}",
    (Kind.LOCK, "lock"): "waiting for a lock{holder}",
    (Kind.LOCK, "parent"): "waiting for the layer below{holder}",
    (Kind.CLIENT, "client"): "waiting for the client",
    (Kind.RUNTIME, "worker start"): "starting a worker program",
    (Kind.RUNTIME, "worker"): "handing work to a worker program{layer}",
    (Kind.RUNTIME, "bundle"): "the files of the container's bundle",
    (Kind.RUNTIME, "shim start"): "starting the shim",
    (Kind.RUNTIME, "runc create"): "creating the container in the shim and runc",
    (Kind.RUNTIME, "runc start"): "starting its process in the shim and runc",
    (Kind.RUNTIME, "runc exec"): "starting another process in the shim and runc",
    (Kind.RUNTIME, "runc kill"): "sending a signal through the shim and runc",
    (Kind.RUNTIME, "runc delete"): "deleting the container in the shim and runc",
    (Kind.RUNTIME, "runc checkpoint"): "checkpointing the container in the shim and runc",
    (Kind.RUNTIME, "shim end"): "waiting for the end of the shim",
    (Kind.CONTAINER, "runs"): "the container ran",
    (Kind.NODE, "calls"): "the node's own calls{to}",
    (Kind.VERIFIER, "verifier"): "waiting for the image verifier {by_name}",
}
"""What was done, by kind and part."""

_HELP = {
    Kind.REGISTRY: "if {host} answered at once",
    Kind.NETWORK: "with a faster way to {host}, such as a mirror nearby",
    Kind.MIRROR: "without the mirror {host}",
    Kind.PEER: "if {host} gave its bytes at once",
    Kind.CPU: "with more or faster processors",
    Kind.DISK: "with a faster disk",
    Kind.LOCK: "if nothing else held the lock",
    Kind.QUEUE: "if nothing else had been before it",
    Kind.CLIENT: "if the client did not hold it up",
    Kind.RUNTIME: "if programs started at once",
    Kind.VERIFIER: "without the image verifier {holder}",
}


@dataclass(frozen=True, slots=True)
class Said:
    """The texts of a verdict."""

    kinds: tuple[Kind, ...]
    """What the sentence names, in its order."""
    sentence: str
    advice: str
    gain: float
    notes: tuple[str, ...]


def what(reason: Reason, layer: int | None, rate: float | None = None) -> str:
    """A reason in words; ``layer`` counts from 0 and is said from 1, ``rate`` is in bytes a second."""
    words = _WHAT.get((reason.kind, reason.part))
    if words is None:
        return f"not recorded, in {reason.part}" if reason.kind is Kind.UNKNOWN else reason.part
    named = "" if layer is None else f"layer {layer + 1}"
    return words.format(
        host=reason.host or ("the fleet" if reason.kind is Kind.PEER else "the registry"),
        of_host=f" of {reason.host}" if reason.host else "",
        layer=f" ({named})" if named else "",
        of_layer=f" of {named}" if named else "",
        rate="" if rate is None else f" at {bytes_(rate)}/s",
        holder=f" that {reason.holder}{',' if ', ' in reason.holder else ''} held" if reason.holder else "",
        by=f", which {reason.holder} fetched" if reason.holder else "",
        to=f" to {reason.holder}" if reason.holder else "",
        by_name=reason.holder or "(without a name)",
    )


def rates(nodes: Iterable[Node]) -> dict[str, float]:
    """Bytes a second that came from each host, over all transfers from it among ``nodes``."""
    sizes: Counter[str] = Counter()
    times: dict[str, list[tuple[int, int]]] = {}
    for node in nodes:
        if node.span.name == "registry.transfer" and (size := node.number("splitd.bytes")) and node.length:
            host = node.text("server.address")
            sizes[host] += int(size)
            times.setdefault(host, []).append((node.start, node.end))
    return {host: sizes[host] * 1e9 / sum(end - start for start, end in _merged(times[host])) for host in times}


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The times in which at least one of the spans was, in order and apart."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def bytes_(count: float) -> str:
    """A number of bytes for people: ``14 MB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if count >= 9.95 or unit == "B" else f"{count:.1f} {unit}"


def seconds(value: float) -> str:
    """Seconds for people, without their unit: ``8.1``, ``0.25``."""
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2f}" if value >= 0.0995 else f"{value:.3f}"


def of(about: Head, causes: Sequence[Cause], slices: Sequence[Slice], tree: Tree) -> Said:
    """The texts for an operation whose causes are known, the greatest first."""
    wall = tree.root.length / 1e9
    notes = [] if not tree.left_out else [f"{tree.left_out} spans were left out: the trace has too many"]
    if not tree.rooted and about.operation:
        notes.append("the root of this trace was not recorded, as after an end of the gateway meanwhile")
    operation = text(about.operation) or "operation"
    if not causes:
        return Said((Kind.UNKNOWN,), f"{seconds(wall)} s: nothing was recorded", "", 0.0, tuple(notes))
    groups = sorted(_groups(causes), key=_total, reverse=True)
    group = groups[0]
    sentence = f"{seconds(_total(group))} of {seconds(wall)} s: {_named(group, slices, wall)}"
    first = group[0]
    if first.kind not in (Kind.CPU, Kind.DISK, *UNEXPLAINED) and _busy(group, slices, tree) < IDLE:
        notes.append(f"nothing else of the {operation} was at work meanwhile")
        sentence += "; nothing else of it was at work meanwhile"
    also = [each for each in groups[1:] if _matters(each, wall)][:MORE]
    sentence += "".join(
        f"; {seconds(_total(each))} s more: {_listed(each, wall)}{_layers(each, slices)}" for each in also
    )
    kinds = tuple(each[0].kind for each in (group, *also))
    if about.outcome in {FAILED, CANCELLED}:
        why = _failure(tree) if about.outcome == FAILED else ""
        sentence = f"{about.outcome} after {seconds(wall)} s{': ' if why else ''}{why}; {sentence}"
    if about.outcome != "ok":  # what would have made a failure faster is no help
        return Said(kinds, sentence, "", 0.0, tuple(notes))
    helped = next((each for each in groups if each[0].kind in _HELP), [])
    gain = _total(helped)
    if not helped or gain < max(WORTH, STANDS_OUT * wall):
        return Said(kinds, sentence, "", 0.0, tuple(notes))
    condition = _HELP[helped[0].kind].format(
        host=helped[0].host or ("the fleet" if helped[0].kind is Kind.PEER else "the registry"), holder=helped[0].holder
    )
    advice = f"{condition}, it would take {seconds(wall - gain)} s at best: {seconds(gain)} s less"
    return Said(kinds, sentence, advice[0].upper() + advice[1:], gain, tuple(notes))


def _failure(tree: Tree) -> str:
    """What failed first, in words; "" if nothing says it. Requests to registries are no failures by themselves, since
    others may serve instead; without another failure the last one that went wrong is it.
    """
    failed = [n for n in tree.nodes.values() if n.span.status == Status.ERROR and n.span.message and not n.background]
    if failed:
        return text(min(failed, key=lambda node: node.end).span.message)
    wrong = [node for node in tree.nodes.values() if node.span.attributes.get("error.type")]
    if not wrong:
        return ""
    last = max(wrong, key=lambda node: node.end)
    attributes = last.span.attributes
    said = text(attributes.get("error.message")) or text(attributes.get("error.type"))
    host = last.text("server.address")
    return f"{host}: {said}" if host and host not in said else said


def _groups(causes: Sequence[Cause]) -> list[list[Cause]]:
    """Causes of one kind about the same host or holder stand together."""
    groups: dict[tuple[Kind, str, str], list[Cause]] = {}
    for cause in causes:
        holder = "" if cause.kind in UNEXPLAINED else cause.holder
        groups.setdefault((cause.kind, cause.host, holder), []).append(cause)
    return list(groups.values())


def _total(group: Sequence[Cause]) -> float:
    return sum(cause.seconds for cause in group)


def _matters(group: Sequence[Cause], wall: float) -> bool:
    """Whether the sentence names a group that is not the greatest."""
    kind = group[0].kind
    least = ALSO if kind in OUTSIDE else STANDS_OUT
    return kind is not Kind.UNKNOWN and _total(group) >= max(WORTH, least * wall)


def _named(group: Sequence[Cause], slices: Sequence[Slice], wall: float) -> str:
    return _listed(group, wall) + _layers(group, slices)


def _listed(group: Sequence[Cause], wall: float) -> str:
    """The causes of a group in words: one if it is most of it, else at most three with their times."""
    if group[0].kind is Kind.NODE and wall < SHORT:
        return "the node's own calls"
    if group[0].seconds >= MOSTLY * _total(group):
        return group[0].what
    least = TRIFLE if wall < SHORT else 0.0
    named = [cause for cause in group[:3] if cause.seconds >= least]
    if group[0].kind is Kind.NODE:
        to = ", ".join(f"{c.holder} {seconds(c.seconds)} s" for c in named if c.holder)
        return "the node's own calls" + (f" (to {to})" if to else "")
    if not named:
        return f"{group[0].what} and more of the kind"
    if group[0].kind is Kind.UNKNOWN:
        return "not recorded, in " + ", ".join(f"{c.part} ({seconds(c.seconds)} s)" for c in named)
    return ", ".join(f"{cause.what} {seconds(cause.seconds)} s" for cause in named)


def _layers(group: Sequence[Cause], slices: Sequence[Slice]) -> str:
    """The layers that most of a group's time is about, unless its causes say it: `` (layers 1 and 3)``."""
    if any(cause.layer is not None and f"layer {cause.layer + 1}" in cause.what for cause in group[:3]):
        return ""
    reasons = _reasons(group)
    lengths: Counter[int | None] = Counter()
    for part in slices:
        if _key(part.reason) in reasons:
            lengths[part.layer] += part.end - part.start
    whole, reached, named = lengths.total(), 0, []
    del lengths[None]
    for layer, length in lengths.most_common():
        if reached < MOSTLY * whole:
            named.append(layer)
            reached += length
    if reached < MOSTLY * whole or not named:
        return ""
    *others, last = [str(layer + 1) for layer in sorted(layer for layer in named if layer is not None)]
    if len(others) >= _MANY:
        return f" ({len(named)} layers)"
    return f" (layers {', '.join(others)} and {last})" if others else f" (layer {last})"


def _key(reason: Reason | Cause) -> tuple[Kind, str, str, str]:
    return reason.kind, reason.part, reason.host, reason.holder


def _reasons(group: Sequence[Cause]) -> set[tuple[Kind, str, str, str]]:
    return {_key(cause) for cause in group}


def _busy(group: Sequence[Cause], slices: Sequence[Slice], tree: Tree) -> float:
    """How much of the group's time the operation's workers spent on a processor or the disk, as a share."""
    reasons = _reasons(group)
    named = _merged((part.start, part.end) for part in slices if _key(part.reason) in reasons)
    starts = [start for start, _ in named]
    before = [0, *accumulate(end - start for start, end in named)]

    def until(time: int) -> int:
        """The group's time before ``time``."""
        index = bisect_right(starts, time)
        return before[index] - (max(0, named[index - 1][1] - time) if index else 0)

    spent = 0.0
    for node in tree.nodes.values():
        worked = (node.number("splitd.time.cpu_ms") or 0.0) + (node.number("splitd.time.disk_ms") or 0.0)
        if worked and node.length:
            spent += worked * 1e6 * (until(node.end) - until(node.start)) / node.length
    return spent / before[-1] if before[-1] else 0.0
