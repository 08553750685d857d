"""The candidates of a node's routes: how they come, how they end, and what outlasts a restart.

:mod:`gateway.candidates` says what a candidate is and which objects it takes. Here its life is carried out, in an order
that a crash at any moment leaves whole:

- *replace*: the file has it (:mod:`gateway.standing`), then metadata has heard of its backend, then it takes objects.
- *restore*, and an end by itself: it takes no new objects from that moment on, then the file says so. If the file
  cannot be written, it is tried again until it can.
- *gone*: metadata has nothing in its backend, and the collector has removed all there; then the file has it no more.
- *forget*: metadata drops the records of its objects first. They stay in the candidate's store, which is its owner's.

Calls that are under way are not cut off by any of this: a connection is closed once nothing comes by it, or after ten
minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from gateway import standing
from gateway.candidates import KINDS, Candidate, Terms, kind_of
from gateway.hop import Hop
from gateway.judge import Judge
from gateway.notes import Notes
from gateway.routes import Routes
from gateway.store import Objects
from gateway.upstream import Upstream
from services.kit import errors, loops
from services.kit.addresses import Address
from services.kit.metrics import Family, Sample

log = logging.getLogger(__name__)

MOST = 64
"""Candidates of a node."""
_LOOK = 30.0
"""Seconds until it is looked again whether a draining candidate still has objects."""
_AGAIN = 5.0
"""Seconds until a file that could not be written is written again."""
_ENDING = 600.0
"""Seconds that calls under way have to end, where their service has moved, or is no candidate any more."""

_JUDGED = ("splitd_candidate_calls", "splitd_candidate_failures")

RESTORED = "restored by its operator"
UNNAMED = "the configuration names it no more"


class Backends(Protocol):
    """metadata, as far as it knows of candidates' backends (:class:`gateway.remote.RemoteRecords`)."""

    def lead_to(self, backends: Sequence[str]) -> None:
        """Tell metadata of these backends the next time that it is told anything."""
        ...

    async def candidates(self, backends: Sequence[str]) -> None:
        """Tell metadata of these backends now; Unavailable if it does not hear."""
        ...

    async def objects(self, backend: str, limit: int = 0) -> Objects:
        """What a backend holds."""
        ...

    async def forget(self, backend: str) -> Objects:
        """Drop the records of what a backend holds."""
        ...


class Replacing:
    """The candidates on ``routes``, stored below ``root``. ``configured`` are those that the configuration names.
    ``notes`` has the things of which metadata has no record, by the kind of route.

    ``look``, ``again`` and ``ending`` are seconds: until it is looked again whether a draining one has objects; until a
    file that could not be written is written again; and for which calls under way may use a connection that is not
    needed any more.
    """

    def __init__(
        self,
        routes: Routes,
        records: Backends,
        root: Path,
        configured: Sequence[Terms] = (),
        *,
        notes: Mapping[str, Notes] = {},
        now: Callable[[], float] = time.time,
        look: float = _LOOK,
        again: float = _AGAIN,
        ending: float = _ENDING,
    ) -> None:
        self._routes = routes
        self._records = records
        self._root = root
        self._notes = notes
        self._now = now
        self._look = look
        self._again = again
        self._ending = ending
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._unsaved = False
        self._tasks = loops.Tasks()
        self._judges: dict[str, Judge] = {}
        self._where: dict[str, Address] = {}
        self._all = standing.kept(root)
        self._configure(configured)
        for each in self._all:
            if reason := each.over(now()):
                each.drain(reason)
        records.lead_to(self._backends())
        self._stand()
        routes.changed.append(self._stand)

    # -- what there is

    @property
    def candidates(self) -> Sequence[Candidate]:
        """All that stand, draining ones too."""
        return tuple(self._all)

    def on(self, route: str) -> Sequence[Candidate]:
        """Those of a route."""
        return [each for each in self._all if each.terms.route == route]

    def names(self) -> list[str]:
        """The routes that may have candidates."""
        return sorted(name for name in self._routes.hops if name != "snapshots")

    def route(self, name: str) -> Hop:
        """InvalidArgument, with the names that there are, if there is none of that name."""
        names = self.names()
        if name not in names:
            raise errors.InvalidArgument.verbatim(
                f"there is no route {name[:80]!r}: the routes of this node are {', '.join(names)}"
            )
        return self._routes[name]

    def find(self, route: str, name: str = "") -> list[Candidate]:
        """The candidates of a route, or the one of that name; NotFound, with the names that there are."""
        self.route(route)
        found = self.on(route)
        chosen = [each for each in found if not name or each.terms.name == name]
        if not chosen:
            names = ", ".join(each.terms.name for each in found)
            raise errors.NotFound.verbatim(
                f"{route} has no candidate {name[:80]!r}: it has {names}"
                if names
                else f"{route} has no candidate: all its calls go to its own service"
            )
        return chosen

    def upstream(self, candidate: Candidate) -> Upstream | None:
        """The way to a candidate; None while its route is unknown."""
        hop = self._routes.candidates.get(candidate.terms.backend)
        return None if hop is None else hop.home

    async def objects(self, candidate: Candidate, limit: int = 0) -> Objects:
        """What it holds; nothing, if the kind of its route has no objects."""
        backend = candidate.terms.backend
        if (notes := self._noted(candidate)) is not None:
            return notes.objects(backend, limit)
        return await self._records.objects(backend, limit) if _is_stored(candidate) else Objects()

    # -- what operators do

    async def replace(self, terms: Terms) -> tuple[Candidate, str]:
        """Have a candidate, from now on, by these terms. Answers it, and where it was before if it has moved."""
        hop = self.route(terms.route)
        terms.check()
        if str(terms.where) == hop.home.address:
            raise errors.InvalidArgument.verbatim(f"{terms.address} is where {terms.route} goes already")
        if terms.until and terms.until <= self._now():
            raise errors.InvalidArgument.verbatim("until: that moment is over")
        async with self._lock:
            old = next((each for each in self._all if each.terms.backend == terms.backend), None)
            for each in self._all:
                if each is not old and (each.terms.route, each.terms.where) == (terms.route, terms.where):
                    raise errors.InvalidArgument.verbatim(
                        f"{terms.address} is candidate {each.terms.name} of {terms.route} already: give it that name"
                    )
            if old is None and len(self._all) >= MOST:
                raise errors.ResourceExhausted(f"the node has {MOST} candidates")
            new = Candidate(terms, configured=old.configured if old is not None else "")
            await self._keep([*(each for each in self._all if each is not old), new])
            moved = old.terms.address if old is not None and old.terms.address != terms.address else ""
            if old is None:
                try:
                    if _is_stored(new):
                        await self._records.candidates([*self._backends(), terms.backend])
                except errors.NodeError:
                    self._records.lead_to(self._backends())
                    await self._keep(self._all)
                    raise
                self._all.append(new)
            else:
                old.renew(terms)
                new = old
            self._stand()
            self._wake.set()
            log.info("%s takes new objects at %s", terms.backend, terms.address)
            return new, moved

    async def restore(self, route: str, name: str = "") -> list[Candidate]:
        """Have it, or all of the route, take no new objects any more."""
        found = self.find(route, name)
        for each in found:
            self._end(each, RESTORED)
        self._wake.set()
        async with self._lock:
            await self._keep(self._all)
        return found

    async def forget(self, route: str, name: str = "") -> Objects:
        """Drop the records of all that a draining candidate holds, and the candidate."""
        found = self.find(route, name)
        if len(found) > 1:
            raise errors.InvalidArgument.verbatim(
                f"{route} has several candidates: say which: {', '.join(each.terms.name for each in found)}"
            )
        (candidate,) = found
        if not candidate.draining:
            raise errors.FailedPrecondition.verbatim(
                f"{candidate.terms.backend} takes new objects: restore {route} first"
            )
        async with self._lock:
            dropped = await self._forgotten(candidate)
            if not candidate.configured:
                await self._drop(candidate)
            else:
                self._records.lead_to(self._backends())
            return dropped

    async def _forgotten(self, candidate: Candidate) -> Objects:
        backend = candidate.terms.backend
        if (notes := self._noted(candidate)) is not None:
            return await notes.forget(backend)
        if not _is_stored(candidate):
            return Objects()
        await self._records.candidates([each for each in self._backends() if each != backend])
        try:
            return await self._records.forget(backend)
        except BaseException:
            self._records.lead_to(self._backends())
            raise

    def _noted(self, candidate: Candidate) -> Notes | None:
        return self._notes.get(kind_of(candidate.terms.route))

    # -- how they stand

    def _backends(self) -> list[str]:
        return [each.terms.backend for each in self._all if _is_stored(each)]

    def _stand(self) -> None:
        """Have each hop's candidates as they are now; those of a snapshotter that is not known yet, later."""
        for name in self.names():
            hop = self._routes[name]
            candidates = self.on(name)
            hops = [self._led(each) for each in candidates]
            if candidates or hop.candidates:
                hop.stand(candidates, hops)

    def _led(self, candidate: Candidate) -> Hop:
        """The hop of a candidate, which leads to its address now."""
        backend, where = candidate.terms.backend, candidate.terms.where
        hop = self._routes.candidates.get(backend)
        if hop is None or self._where.get(backend) != where:
            self._where[backend] = where
            upstream, judge = self._routes.candidate_upstream(candidate.terms), self._judges.pop(backend, None)
            if hop is None:
                hop = self._routes.candidates[backend] = Hop(backend, upstream)
            else:
                before = hop.replace(upstream)
                self._leave(before, judge, f"service {backend} has moved to {where}")
        self._judge(candidate, hop.home)
        return hop

    def _judge(self, candidate: Candidate, upstream: Upstream) -> None:
        backend = candidate.terms.backend
        judge = self._judges.get(backend)
        if candidate.terms.judged and judge is None:
            judge = self._judges[backend] = Judge(candidate, lambda: self._judged(candidate))
            upstream.instruments.add(judge)
        elif not candidate.terms.judged and judge is not None:
            upstream.instruments.remove(self._judges.pop(backend))

    def _leave(self, upstream: Upstream, judge: Judge | None, reason: str) -> None:
        """Close a connection when nothing comes by it any more."""
        self._tasks.start(f"the end of the connection to {upstream.name}", self._left(upstream, judge, reason))

    async def _left(self, upstream: Upstream, judge: Judge | None, reason: str) -> None:
        if judge is None:  # nobody has counted its calls
            if not upstream.up:  # those that are held for it are all that there can be
                await asyncio.sleep(min(upstream.hold, self._ending))
            if upstream.up:
                await asyncio.sleep(self._ending)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._ending):
                    await judge.idle.wait()
        self._routes.retire(upstream, reason)

    def _judged(self, candidate: Candidate) -> None:
        if reason := candidate.over(self._now()):
            self._end(candidate, reason)

    def _end(self, candidate: Candidate, reason: str) -> None:
        if candidate.draining:
            return
        candidate.drain(reason)
        log.warning("%s takes no new objects any more: %s", candidate.terms.backend, reason)
        self._stand()
        self._unsaved = True
        self._wake.set()

    def _configure(self, configured: Sequence[Terms]) -> None:
        """Have those that the configuration names. One that ended since stays so, unless its entry has changed."""
        named = {terms.backend: terms for terms in configured}
        for each in self._all:
            terms = named.pop(each.terms.backend, None)
            entry = "" if terms is None else _line(terms)
            if terms is None and each.configured:
                each.drain(UNNAMED)
            elif terms is not None and each.configured != entry:
                each.renew(terms)
            each.configured = entry
        self._all += [Candidate(terms, configured=_line(terms)) for terms in named.values()]
        self._unsaved = bool(configured) or self._unsaved

    # -- how they end

    async def follow(self) -> None:
        """End those whose time is over, and let those without objects go; for :func:`services.kit.loops.running`."""
        while True:
            for each in self._all:
                self._judged(each)
            if self._unsaved and not await self._saved():
                wait = self._again
            else:
                await self._let_go()
                left = [each.terms.until - self._now() for each in self._all if each.terms.until and not each.draining]
                wait = max(min([self._look, *left]), 0.01)
            self._wake.clear()
            if self._unsaved:
                wait = min(wait, self._again)
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _saved(self) -> bool:
        self._unsaved = False
        try:
            async with self._lock:
                await self._keep(self._all)
        except OSError as error:
            self._unsaved = True
            log.error("the candidates of routes cannot be stored: %s", errors.words_of_path(error))
            return False
        return True

    async def _let_go(self) -> None:
        for each in [each for each in self._all if each.draining and not each.configured]:
            try:
                if not (await self.objects(each)).none:
                    continue
                async with self._lock:
                    if each.draining and each in self._all:
                        await self._drop(each)
                        if _is_stored(each):
                            await self._records.candidates(self._backends())
            except errors.NodeError as error:
                log.info("whether %s has objects is not known: %s", each.terms.backend, error)
            except OSError as error:
                log.error("the candidates of routes cannot be stored: %s", errors.words_of_path(error))

    async def _drop(self, candidate: Candidate) -> None:
        left = [each for each in self._all if each is not candidate]
        await self._keep(left)
        self._all = left
        self._stand()
        backend = candidate.terms.backend
        hop, judge = self._routes.candidates.get(backend), self._judges.pop(backend, None)
        self._where.pop(backend, None)
        if hop is not None:
            self._leave(hop.home, judge, f"service {backend} is no candidate of {candidate.terms.route} any more")
        log.info("%s is gone: %s", backend, candidate.drained)

    async def _keep(self, candidates: Sequence[Candidate]) -> None:
        await asyncio.to_thread(standing.keep, self._root, candidates)

    # -- metrics

    async def families(self) -> Sequence[Family]:
        """For :func:`services.kit.metrics.source`."""
        if not self._all:
            return ()
        backends = [({"backend": each.terms.backend}, each) for each in self._all]
        judged = [(labels, each) for labels, each in backends if each.terms.judged]
        counters: Mapping[str, tuple[str, Callable[[Candidate], int]]] = {
            "splitd_candidate_calls": ("Calls to a candidate that were judged.", lambda each: each.outcomes.calls),
            "splitd_candidate_failures": ("Those of them that failed.", lambda each: each.outcomes.failures),
            "splitd_candidate_chosen": ("New objects and calls that went to a candidate.", lambda each: each.chosen),
            "splitd_candidate_sent_home": (
                "New objects and calls that went home, since the candidate was down.",
                lambda each: each.sent_home,
            ),
        }
        return [
            *(
                Family(
                    name,
                    words,
                    "counter",
                    [
                        Sample(float(of(each)), labels, "_total")
                        for labels, each in (judged if name in _JUDGED else backends)
                    ],
                )
                for name, (words, of) in counters.items()
            ),
            Family(
                "splitd_candidate_up",
                "Whether a candidate answers: 1 or 0.",
                "gauge",
                [
                    Sample(float(upstream is not None and upstream.up), labels)
                    for labels, each in backends
                    for upstream in [self.upstream(each)]
                ],
            ),
            Family(
                "splitd_candidate_taking",
                "Whether a candidate takes new objects (1), or drains (0).",
                "gauge",
                [Sample(float(not each.draining), labels) for labels, each in backends],
            ),
        ]


def _is_stored(candidate: Candidate) -> bool:
    """Whether records name its backend."""
    return KINDS[kind_of(candidate.terms.route)] == "objects"


def _line(terms: Terms) -> str:
    return repr(dataclasses.astuple(terms))
