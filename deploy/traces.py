"""The traces of a node, or of a file, for ``splitd trace`` and ``splitd pull``; and why there are none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from typing import Protocol

from client import trace_files, trace_live
from client.shown import complain
from deploy.failure import Failure
from deploy.place import Place
from services.kit import errors, rpc, settings
from services.kit.config import Tracing
from services.traces import verdict
from services.traces.memory import MemoryStore
from services.traces.remote import RemoteStore
from services.traces.store import Live, Query, Summary, Trace

PATIENCE = 5.0
"""Seconds to wait for the traces service of a node that is up."""
FRESH = 1.2
"""Seconds after a question what is in flight until all processes have said it anew: before it, they may not have for
some seconds.
"""
SOCKET = "traces.sock"
SPANS = 3.0
"""Seconds to wait for the spans of a pull that has ended."""
PAUSE = 0.6
"""Seconds from one look at them to the next: longer than a process waits for further spans."""


class Source(Protocol):
    """Where traces are looked up."""

    async def traces(self, query: Query) -> list[Summary]:
        """As :meth:`services.traces.store.Store.traces`."""
        ...

    async def trace(self, prefix: str) -> Trace:
        """As :meth:`services.traces.store.Store.trace`."""
        ...


@contextlib.asynccontextmanager
async def of_node(here: Place, patience: float = PATIENCE) -> AsyncIterator[RemoteStore]:
    """The traces of a node, while the block lasts. NotUp if no node is up; a Failure says why it has no traces, or that
    its traces service does not answer.
    """
    async with rpc.Channel(here.state / SOCKET, "traces") as channel:
        if not os.path.exists(here.state / SOCKET):
            raise absent(here)
        if not await channel.wait_connected(patience):
            raise absent(here)
        yield RemoteStore(channel)


def absent(here: Place) -> Failure:
    """Why the node's traces service does not answer."""
    from deploy import supervision

    if not supervision.is_up(here):
        return supervision.not_up(here)
    if why := untraced(here):
        return Failure(why)
    return Failure(
        f"the traces service at {here.state / SOCKET} does not answer (see {here.hint('status')}; "
        f"{here.hint('restart traces')} starts it anew)"
    )


def untraced(here: Place) -> str:
    """Why nothing that the node does now gets into its store, by its configuration, and what to do; "" if it does, or
    if the configuration is wrong, which other commands say.
    """
    try:
        config = settings.load(Tracing, settings.read(here.config), "tracing")
    except errors.NodeError:
        return ""
    if not config.enabled:
        return f"tracing is off ([tracing] enabled = false in {here.config}): set it to true, then pull again"
    if config.endpoint:
        return (
            f"traces go to {config.endpoint}, not to the node's own store ([tracing] endpoint in {here.config}): look "
            "there, or export them as OTLP and use splitd trace show --file FILE"
        )
    return ""


def complain_of(found: trace_files.Read) -> None:
    """Say what was left out of a file."""
    if found.refused:
        complain(f"{found.name}: {found.refused} spans were left out, since their ids have a wrong length")
    if found.cut:
        complain(f"{found.name}: line {found.cut}, the last, was left out, since it is not complete")


async def of_file(found: trace_files.Read) -> MemoryStore:
    """The traces of a file."""
    complain_of(found)
    store = MemoryStore()
    await store.add(found.spans)
    return store


async def listed(source: Source, query: Query) -> list[Summary]:
    """The traces that ``query`` selects, newest first; those under way under their names."""
    found = await source.traces(query)
    return trace_live.named(found, await source.live()) if isinstance(source, RemoteStore) else found


async def newest(source: Source, operation: str) -> str:
    """The id of the newest operation of a kind, also of one under way; "" if there is none."""
    found = [(each.start, each.id) for each in await source.traces(Query(operation=operation, limit=1))]
    if isinstance(source, RemoteStore):
        live = await source.live()
        flying = [flight for flight in trace_live.flights(live) if flight.operation == operation]
        found += [(live.now - int(flight.seconds * 1e9), flight.trace) for flight in flying]
    return max(found, default=(0, ""))[1]


async def under_way(source: Source, prefix: str) -> Trace | None:
    """The trace whose id begins so, if it is of an operation that is under way: what is stored of it, and its open
    spans, which end now.
    """
    if not isinstance(source, RemoteStore):
        return None
    try:
        live, found, stored = await _seen(source, prefix.lower())
        if found and not any(map(_has_root, stored)):
            await asyncio.sleep(FRESH)
            live, found, stored = await _seen(source, prefix.lower())
    except errors.InvalidArgument:  # several begin so
        return None
    made = verdict.with_open(stored, found, live)
    if len(made) != 1 or (stored and len(made[0].spans) == len(stored[0].spans)):  # what was reported has ended since
        return None
    return made[0]


async def _seen(node: RemoteStore, prefix: str) -> tuple[Live, set[str], list[Trace]]:
    """What is in flight, which traces of that begin so, and what is stored of the only one. InvalidArgument if several
    do.
    """
    live = await node.live()
    found = {span.trace for span in live.spans if span.trace.startswith(prefix)}
    if found:
        with contextlib.suppress(errors.NotFound):  # no span of it has ended yet
            return live, found, [await node.trace(prefix)]
    return live, found, []


async def others(source: Source, *asked: Trace) -> list[Trace]:
    """The traces that the waits of some link to, as far as ``source`` knows them, also those still under way."""
    found = []
    wanted = sorted(set().union(*map(verdict.wanted, asked)) - {trace.id for trace in asked})
    for identity in wanted:
        with contextlib.suppress(errors.NotFound):
            found.append(await source.trace(identity))
    if wanted and isinstance(source, RemoteStore):
        live = await source.live()
        if {span.trace for span in live.spans}.intersection(wanted).difference(
            trace.id for trace in found if _has_root(trace)
        ):
            await asyncio.sleep(FRESH)
            live = await source.live()
        found = verdict.with_open(found, wanted, live)
    return found


def _has_root(trace: Trace) -> bool:
    """Whether its operation has ended."""
    return any(not span.parent for span in trace.spans)


async def judged(source: Source, trace: Trace) -> verdict.Verdict:
    """The verdict on a trace, with what ``source`` knows of the traces that it waited for."""
    return verdict.judge(trace, await others(source, trace))


async def of_pull(here: Place, reference: str, namespace: str, began: float) -> verdict.Verdict:
    """The verdict on the newest pull of ``reference`` that began after ``began`` (seconds of the monotonic clock) and
    has just ended. The processes send their spans some moments later, so this waits until no more come. A Failure says
    why there is none.
    """
    if why := untraced(here):
        raise Failure(why)
    async with of_node(here, patience=SPANS) as node:
        # by the node's clock, which need not be this process's
        since = (await node.live()).now - int((time.monotonic() - began + 1) * 1e9)
        wanted = Query(operation="pull", image=reference, namespace=namespace, since=since, limit=20)
        known, until = -1, time.monotonic() + SPANS
        while True:
            found = next((each for each in await node.traces(wanted) if each.image == reference), None)
            # the root, which says the outcome, may come last; of a gateway that has died it never comes
            whole = found is not None and bool(found.outcome) and found.spans == known
            if found is not None and (whole or time.monotonic() > until):
                return await judged(node, await node.trace(found.id))
            if time.monotonic() > until:
                raise Failure(
                    "the pull's trace did not come, or only a part of it, as after an end of the gateway meanwhile "
                    f"({here.hint('trace ls')} lists what came)"
                )
            known = -1 if found is None else found.spans
            await asyncio.sleep(PAUSE)
