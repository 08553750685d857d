"""Says in the log which operations take long, while they run: each once a minute, with its stage and its trace."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from services.traces.store import Live, Span

log = logging.getLogger(__name__)

OFTEN = 1.0
"""Seconds from one look to the next, at least."""
AGAIN = 60.0
"""Seconds until an operation is logged again."""
FRESH, STALE = 1.5, 6.0
"""Seconds after a question in which what processes report is new: each reports within a second, for some seconds."""
LASTING = frozenset({"Wait", "Subscribe", "Watch"})
"""Calls that last as long as what they wait for: that a container runs for a week is no news."""
_TRANSFER = "images."
"""Begins the names of transfers' spans. The root learns with the answer only what it is."""
_STAGES = 2
_TEXT = 200
"""Characters of a name."""


class LongRunning:
    """Looks at the open spans that ``live`` tells, for operations that take longer than ``seconds`` (0: none). ``age``
    is that of the oldest, in seconds: as long as all are young, they need not be told. Before a line is logged, ``ask``
    tells the processes to report again, since what some of them have reported may be old.
    """

    def __init__(
        self,
        live: Callable[[], Live],
        seconds: float,
        age: Callable[[], float],
        ask: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live = live
        self._age = age
        self._seconds = seconds
        self._monotonic = monotonic
        self._ask = ask
        self._looked = self._asked = float("-inf")
        self._logged: dict[str, float] = {}
        """When each trace was logged last; of those only that are still open."""

    def look(self) -> None:
        """Look, unless it is too soon."""
        now = self._monotonic()
        if not self._seconds or now - self._looked < OFTEN:
            return
        self._looked = now
        if self._age() < self._seconds:
            return
        live = self._live()
        traces: dict[str, list[Span]] = {}
        for span in live.spans:
            traces.setdefault(span.trace, []).append(span)
        self._logged = {trace: last for trace, last in self._logged.items() if trace in traces}
        lines = {
            trace: line
            for trace, spans in traces.items()
            if now - self._logged.get(trace, float("-inf")) >= AGAIN and (line := _line(spans, live.now, self._seconds))
        }
        if not lines:
            return
        if FRESH <= now - self._asked <= STALE:
            for trace, line in lines.items():
                self._logged[trace] = now
                log.info("%s; trace %s", line, trace)
        elif now - self._asked > STALE:
            self._asked = now
            self._ask()


def _line(spans: Sequence[Span], now: int, seconds: float) -> str:
    """What is said of the open spans of one trace, in the order of their beginnings; "" if it is not worth a line."""
    known = {span.id: span for span in spans}
    busy: set[str] = set()
    for span in spans:
        for each in _above(span, known):
            if each.id in busy:
                break  # and so are all above it
            busy.add(each.id)
    waits = _lasting(spans, known)
    stages = []
    lasting = False
    for span in spans:
        if span.id in waits:
            lasting = True
        elif span.id not in busy and not span.attributes.get("splitd.background"):
            stages.append(span)
    if not stages:
        return ""
    # who waits for a container's end has an open span for as long: then only the rest counts
    since = stages[0].start if lasting else spans[0].start
    if now - since < seconds * 1e9:
        return ""
    more = len(stages) - _STAGES
    return (
        f"{_operation(spans)} has taken {_age(now - since)} so far: "
        + ", ".join(_stage(span, now) for span in stages[:_STAGES])
        + (f" and {more} more" if more > 0 else "")
    )


def _above(span: Span, known: dict[str, Span]) -> Iterator[Span]:
    """The open spans above it; each once, whatever their parents say."""
    seen = {span.id}
    while (above := known.get(span.parent)) is not None and above.id not in seen:
        seen.add(above.id)
        yield above
        span = above


def _lasting(spans: Sequence[Span], known: dict[str, Span]) -> set[str]:
    """The ids of LASTING calls, and of what is below them."""
    found: dict[str, bool] = {}
    for span in spans:
        way = [span]
        for each in _above(span, known):
            if each.id in found:
                break
            way.append(each)
        above = known.get(way[-1].parent)
        lasts = above is not None and found.get(above.id, False)
        for each in reversed(way):
            method = each.attributes.get("rpc.method")
            lasts = found[each.id] = lasts or (isinstance(method, str) and method in LASTING)
    return {each for each, lasts in found.items() if lasts}


def _operation(spans: Sequence[Span]) -> str:
    said = {
        name: next((text for span in spans if isinstance(text := span.attributes.get(name), str) and text), "")
        for name in ("splitd.operation", "container.image.name", "container.id", "splitd.namespace")
    }
    transfer = next((span.name for span in spans if span.name.startswith(_TRANSFER)), "")
    what = said["splitd.operation"] or transfer.removeprefix(_TRANSFER) or spans[0].name
    about = said["container.image.name"] or said["container.id"]
    namespace = said["splitd.namespace"]
    return _shown(what) + (f" {_shown(about)}" if about else "") + (f" in {_shown(namespace)}" if namespace else "")


def _stage(span: Span, now: int) -> str:
    notes = [
        text
        for name in ("splitd.wait.for", "server.address", "oci.layer.digest")
        if isinstance(text := span.attributes.get(name), str) and text
    ]
    details = "".join(f", {_shown(note)}" for note in notes)
    name = span.name.rpartition(".")[2] if "/" in span.name else span.name
    return f"{_shown(name)} ({_shown(span.service)}{details}) for {_age(now - span.start)}"


def _age(nanoseconds: int) -> str:
    minutes, seconds = divmod(max(0, nanoseconds) // 10**9, 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _shown(text: str) -> str:
    """``text`` on one line, and of a bounded length."""
    short = text if len(text) <= _TEXT else f"{text[:_TEXT]}..."
    return short if short.isprintable() else short.encode("unicode_escape").decode()
