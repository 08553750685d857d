"""One operation of a client, as the gateway sees it: the calls that belong to it, what it is called, how it ended, and
its root span.

A call tells little about the operation. So its name is inferred from all of them when it is over, unless a process
that knows better has said it (``tracing.operation``): the images service of a Transfer, for example. The gateway itself
adds up what it coordinates: bytes of content that came and that were there already, layers, the snapshotter.
"""

from __future__ import annotations

import contextvars
import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gateway.calls import CLEANUP, Key, Kind, field, transfer
from services.kit import errors, spans, tracing

CALLS, QUESTIONS, ASKING = 10_000, 200, 1.0
"""Calls that one operation has; one that only asks, which gets no more calls after so many seconds."""
_GAPS = 512
"""The longest gaps that are kept."""
_HELD = 1000
"""Short questions that are kept until the end."""
_METHODS = 128
"""Methods whose calls are told apart."""
COVERED = 0.97
"""The part of an operation's time that its spans cover. Gaps and questions shorter than ``fold`` are recorded as far
as this needs them, the longest first.
"""

_UNREMARKABLE = frozenset(
    {0, errors.NotFound.code, errors.AlreadyExists.code, errors.OutOfRange.code, errors.Unimplemented.code}
)
"""How calls of an operation that succeeds may end: clients ask, and go on without."""
_DECISIVE = frozenset({"Containers.Create", "Tasks.Create", "Tasks.Start", "Tasks.Exec", "Transfer.Transfer"})
"""Methods without whose success their operation failed."""
_PULLED = ("manifest-", "index-", "layer-", "config-")
"""How clients that fetch by themselves begin the refs of what they write (containerd's remotes.MakeRefKey)."""
_IMPORTED = ("tar-",)
"""How they begin those of an archive's content (containerd's archive.ImportIndex)."""


Blocked = tuple[str, str]
"""What a client waits for that makes no call, in words, and the span that holds it; both empty if it is not known."""
Gap = Callable[[int, int, Blocked], None]
"""Records that the client made no call between two times."""


_MAKING = frozenset({"Content.Write", "Images.Create", "Leases.Create", "Snapshots.Prepare", "Snapshots.Commit"})
"""Methods of which one makes an operation more than a deletion."""
_PULLING = ("Images.Create", "Images.Update", "Transfer.Transfer")
"""A pull or an import that succeeds has one of these succeed."""


class Operation:
    """One operation. Times are nanoseconds of :func:`services.kit.tracing.now`."""

    __slots__ = (
        "_changes",
        "_covered",
        "_created",
        "_fold",
        "_gaps",
        "_open",
        "_said",
        "_short",
        "blocked",
        "busy",
        "calls",
        "came",
        "connection",
        "container",
        "digest",
        "done",
        "goal",
        "gone",
        "image",
        "keys",
        "last",
        "layers",
        "layers_present",
        "leases",
        "namespace",
        "noted",
        "over",
        "present",
        "root",
        "single",
        "snapshotter",
        "start",
        "under_way",
        "waits",
    )

    def __init__(
        self, root: tracing.Span, namespace: str, start: int, connection: object, *, fold: int, single: bool
    ) -> None:
        """``fold`` is in nanoseconds: shorter questions and gaps are recorded only as far as :data:`COVERED` needs
        them.
        """
        self.root = root
        self.namespace = namespace
        self.start = self.last = start
        """``last`` is when the last call began or ended, except for the ends of waits."""
        self.connection = connection
        self.noted: set[Any] = set()
        """What is known of the connections whose further calls may belong to it."""
        self.gone = False
        """Whether its connection has ended."""
        self.single = single
        """Whether it has one call only."""
        self.over = False
        self.calls = 0
        self.under_way = 0
        """Calls that have not ended, except for waits."""
        self.waits = 0
        self._open = 0
        """When the last of all calls ended, while there is none."""
        self.keys: set[Key] = set()
        self.busy: Counter[Key] = Counter()
        """Calls under way, by what they are about."""
        self.leases: set[str] = set()
        """Leases that it made, and has not deleted."""
        self.done: dict[str, bool] = {}
        """Methods that were called, in the order of their first calls; whether one succeeded."""
        self._changes: dict[str, tuple[int, str]] = {}
        """Those of them that change something, and how the last call of each ended."""
        self._gaps: list[tuple[int, int, Blocked]] = []
        """Length and start of the gaps between calls, and what was waited for: a heap."""
        self.blocked: Blocked = ("", "")
        self._created = ""
        """The container that it created."""
        self._said: dict[str, str | int] = {}
        """Attributes of the root, as they were set here."""
        self._fold = fold
        self._short: list[tracing.Span] = []
        """Short questions that ended while no other call was under way."""
        self._covered: list[tuple[int, int]] = []
        """Times of calls that have a span for certain."""
        self.came = self.present = self.layers = self.layers_present = 0
        self.image = self.digest = self.container = self.snapshotter = ""
        self.goal = ""
        """Its name, if refs of content or a Transfer say it."""

    # ------------------------------------------------------------------------------------------ its calls

    @property
    def full(self) -> bool:
        """Whether it gets no more calls."""
        if self._changes:
            return self.calls >= CALLS
        return self.calls >= QUESTIONS or self.last - self.start >= ASKING * 1e9

    @property
    def busy_now(self) -> bool:
        """Whether a call is under way, a wait too."""
        return bool(self.under_way or self.waits)

    def clashes(self, key: Key, *, creates: bool = False) -> bool:
        """Whether a call about ``key``, which may create it, belongs to another operation: this one has created
        another container, or has calls under way about another thing of the same kind.
        """
        if creates and key[0] == "container" and self._created not in ("", key[2]):
            return True
        return any(other[0] == key[0] and other != key for other in self.busy)

    def begins(self, kind: Kind, keys: tuple[Key, ...], request: bytes, now: int) -> None:
        """A call of it begins."""
        if not self.busy_now and self.calls and now > self._open:
            gap = now - self._open, self._open, self.blocked
            if len(self._gaps) < _GAPS:
                heapq.heappush(self._gaps, gap)
            else:
                heapq.heappushpop(self._gaps, gap)
        self.blocked = "", ""
        self.calls += 1
        self.last = now
        if kind.lasts:
            self.waits += 1
        else:
            self.under_way += 1
        for key in keys:
            self.busy[key] += 1
        if request and kind.subject:
            self._about(kind, request)
        if kind.name not in self.done and len(self.done) < _METHODS:
            self.done[kind.name] = False
            if kind.changes:
                self._changes[kind.name] = 0, ""
            self._say(self._attributes())  # for those who look at what is in flight

    def _about(self, kind: Kind, request: bytes) -> None:
        if kind.subject == "transfer":
            self.goal, self.image = transfer(request)
            return
        said = field(request, kind.path)
        if kind.subject == "image":
            self.image = self.image or said
            if kind.name in {"Images.Create", "Images.Update"}:
                self.image = said or self.image
                self.digest = field(request, (1, 3, 2)) or self.digest
        elif kind.subject == "container":
            self.container = self.container or said
            if kind.name == "Containers.Create":
                self._created = self._created or said
                self.image = field(request, (1, 3)) or self.image
        elif kind.subject == "snapshotter":
            self.snapshotter = self.snapshotter or said

    def hold(self, question: tracing.Span) -> bool:
        """Keep the span of a short question until it is known whether it is needed to cover the operation's time."""
        if len(self._short) >= _HELD:
            return False
        self._short.append(question)
        return True

    def ends(self, kind: Kind, keys: tuple[Key, ...], begun: int, code: int, message: str, now: int) -> None:
        """A call of it has ended, with a gRPC code."""
        if kind.changes or kind.lasts or now - begun >= self._fold:
            self._covered.append((begun, now))
        for key in keys:
            self.busy[key] -= 1
            if self.busy[key] <= 0:
                del self.busy[key]
        if kind.lasts:
            self.waits -= 1
        else:
            self.under_way -= 1
            self.last = now
        if not self.busy_now:
            self._open = now
        if kind.name in self.done:
            self.done[kind.name] |= not code
        if kind.name in self._changes:
            self._changes[kind.name] = code, message
        if not code:
            if kind.name == "Snapshots.Commit":
                self.layers += 1
            elif kind.name == "Snapshots.Stat":
                self.layers_present += 1

    def wrote(self, ref: str) -> None:
        """Content is written under ``ref``."""
        if not self.goal:
            self.goal = "pull" if ref.startswith(_PULLED) else "import" if ref.startswith(_IMPORTED) else ""

    # ------------------------------------------------------------------------------------------ its end

    def finish(self, gap: Gap) -> None:
        """End the root, with all that is known. ``gap`` is called for each gap that is recorded."""
        self.over = True
        until = max(self.last, self._open)
        gaps = [(length, partial(gap, start, start + length, why)) for length, start, why in self._gaps]
        questions = [(span.over - span.start, partial(span.decide, keep=True)) for span in self._short]
        missing = until - self.start - union(self._covered)
        allowed = (1 - COVERED) * (until - self.start)
        for length, record in sorted([*gaps, *questions], key=lambda each: -each[0]):
            if length < self._fold and missing <= allowed:
                break
            record()
            missing -= length
        for span in self._short:
            if span.was_folded:
                span.decide(keep=False)
        self._short.clear()
        root = self.root
        self._say({**self._attributes(), "splitd.outcome": self._outcome(), "splitd.calls": self.calls})
        if root.get("splitd.outcome") == "failed":
            failures = [failure for failure in self._failures() if failure[0] != errors.Cancelled.code]
            code, message = failures[-1] if failures else (errors.Unknown.code, "the client did not come to its end")
            root.status(errors.Unknown.code if code in spans.FINE else code, message)
        root.end(until)

    def _say(self, attributes: Mapping[str, str | int]) -> None:
        """Set attributes of the root, except those that another process has set."""
        root, said = self.root, self._said
        for name, value in attributes.items():
            if value and value != said.get(name) and root.get(name) in (None, said.get(name)):
                said[name] = value
                root.set(**{name: value})
        root.rename(str(root.get("splitd.operation") or self._name()))

    def _name(self) -> str:
        done = self.done
        if "Tasks.Create" in done:
            return "run"
        if "Tasks.Exec" in done:
            return "exec"
        if "Tasks.Start" in done:
            return "run"
        if self.goal:
            return self.goal
        if "Containers.Create" in done:
            return "create"
        if not _MAKING & done.keys() and any(name.endswith(".Delete") for name in done):
            return "delete"
        if "Tasks.Kill" in done:
            return "kill"
        if "Diff.Diff" in done:
            return "commit"
        # leases and the like only surround what a client does
        names = [*self._changes, *done]
        return next((name for name in names if not name.startswith("Leases.")), next(iter(names), ""))

    def _failures(self) -> list[tuple[int, str]]:
        """The failures that the client cannot have expected. The last call of each method counts."""
        changes = self._changes
        if len(changes) == 1:
            return [end for end in changes.values() if end[0]]
        return [
            end
            for name, end in changes.items()
            if end[0] and name not in CLEANUP and (end[0] not in _UNREMARKABLE or name in _DECISIVE)
        ]

    def _outcome(self) -> str:
        codes = {code for code, _ in self._failures()}
        if codes:
            return "cancelled" if codes == {errors.Cancelled.code} else "failed"
        if self.goal and not any(self.done.get(name) for name in _PULLING):
            # a client that fails gives its lease back
            return "cancelled" if self.leases else "failed"
        return "ok"

    def _attributes(self) -> dict[str, str | int]:
        name = self._name()
        layered = name in {"pull", "import"}
        return {
            "splitd.operation": name,
            "splitd.namespace": self.namespace,
            "container.image.name": self.image,
            "oci.manifest.digest": self.digest,
            "container.id": self.container,
            "splitd.snapshotter": self.snapshotter,
            "splitd.bytes": self.came,
            "splitd.bytes.present": self.present,
            "splitd.layers": self.layers + self.layers_present if layered else 0,
            "splitd.layers.present": self.layers_present if layered else 0,
        }


def union(times: list[tuple[int, int]]) -> int:
    """The length of the time that is in at least one of these, from start to end."""
    total, reached = 0, 0
    for start, end in sorted(times):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


CURRENT: contextvars.ContextVar[Operation | None] = contextvars.ContextVar("splitd_operation", default=None)
"""The operation that the handler of the current task works for; None if it is not recorded, or began elsewhere."""
