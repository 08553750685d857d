"""``splitd tap``: shows the calls to a service as they pass through the gateway. It changes none of them, and ends with
Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from client import bars
from client.shown import check_is_read, complain, say
from client.taps_remote import Called, Dropped, Event, Passed, RemoteTaps
from deploy import place, routing
from deploy.verbs.images import timestamp
from services.kit import errors, loops

HELP = "show the calls to a service as they pass: method, namespace, sizes, time, code and trace"
_LOOK = 0.5
"""Seconds from one look whether somebody reads what is printed to the next."""
_COLUMNS = "{:<12}  {:<20}  {:<24}  {:<12}  {:>10}  {:>10}  {:>8}  {}"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--service",
        default="",
        metavar="ROUTE",
        help=(
            "only calls to this one: content, snapshots (all of them), snapshots.NAME, metadata, images, tasks, diff, "
            "sandbox (all controllers), sandbox.NAME, or ROUTE@NAME of a candidate. "
            "Info, List and Update of content, Stat and List of snapshots, containers, "
            "leases and namespaces are metadata's"
        ),
    )
    parser.add_argument("--method", default="", metavar="METHOD", help="only calls of this method, such as Write")
    parser.add_argument("--namespace", "-n", default="", metavar="NAMESPACE", help="only calls in this namespace")
    parser.add_argument(
        "--messages",
        action="store_true",
        help=(
            "show the calls' messages too, shortened: names, digests and numbers of them, and never what may be secret"
        ),
    )
    parser.add_argument("--count", type=_count, default=0, metavar="N", help="end after so many calls")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of calls: 1 or more")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)

    async def watch() -> None:
        async with routing.internal(here) as channel:
            events = RemoteTaps(channel).tap(
                arguments.service, arguments.method, arguments.namespace, messages=arguments.messages
            )
            shown = loops.task("what the tap shows", _shown(events, arguments))
            try:
                while not (await asyncio.wait((shown,), timeout=_LOOK))[0]:
                    check_is_read()
            finally:
                shown.cancel()
            await shown

    routing.run(here, watch())
    return 0


async def _shown(events: AsyncIterator[Event | None], arguments: argparse.Namespace) -> None:
    calls = 0
    async for event in events:
        if event is None:
            if not arguments.json:
                say(_COLUMNS.format("BEGAN", "SERVICE", "METHOD", "NAMESPACE", "SENT", "RECEIVED", "TOOK", "CODE"))
            continue
        if arguments.json:
            print(json.dumps(described(event)), flush=True)
        elif isinstance(event, Dropped):
            complain(f"{event.count} lines were dropped: they came faster than they were printed")
        else:
            say(line(event, numbered=arguments.messages))
        calls += isinstance(event, Called)
        if calls == arguments.count > 0:
            return


def line(event: Called | Passed, *, numbered: bool) -> str:
    """A call, or a message of one, as a line. ``numbered``: calls have numbers, which messages refer to."""
    seconds, rest = divmod(event.time, 10**9)
    clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 10**6:03}"
    if isinstance(event, Passed):
        way = "<" if event.received else ">"
        return f"{clock:<12}  #{event.call} {way} {method(event.path)} {bars.size(event.size)}: {event.text}"
    said = "OK" if not event.code else f"{errors.name(event.code)}: {event.message}"
    number = f"#{event.call} " if numbered else ""
    return _COLUMNS.format(
        clock,
        fitting(event.service, 20),
        f"{number}{method(event.path)}",
        fitting(event.namespace or "-", 12),
        amount(event.sent, event.sent_bytes),
        amount(event.received, event.received_bytes),
        took(event.duration),
        f"{said}  {event.trace}".rstrip(),
    )


def fitting(text: str, width: int) -> str:
    """``text`` in so many columns at most: beginning and end, where it is longer. ``--json`` has all of it."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[-end:]}"


def method(path: str) -> str:
    """``Content/Write``"""
    service, _, name = path.strip("/").rpartition("/")
    return f"{service.rpartition('.')[2]}/{name}"


def amount(messages: int, size: int) -> str:
    """``1.2 MiB``, or ``3: 1.2 MiB`` of several messages."""
    return bars.size(size) if messages == 1 else f"{messages}: {bars.size(size)}" if messages else "-"


def took(nanoseconds: int) -> str:
    """``3.2ms``"""
    return f"{nanoseconds / 1e6:.1f}ms" if nanoseconds < 10**9 else f"{nanoseconds / 1e9:.2f}s"


def described(event: Event) -> dict[str, Any]:
    """An event as ``--json`` has it. ``call`` tells the calls apart."""
    if isinstance(event, Dropped):
        return {"event": "dropped", "count": event.count}
    common = {"call": event.call, "time": timestamp(event.time), "method": event.path.lstrip("/")}
    if isinstance(event, Passed):
        way = "received" if event.received else "sent"
        return {"event": "message", **common, "way": way, "bytes": event.size, "text": event.text}
    return {
        "event": "call",
        **common,
        "service": event.service,
        "namespace": event.namespace or None,
        "sent": {"messages": event.sent, "bytes": event.sent_bytes},
        "received": {"messages": event.received, "bytes": event.received_bytes},
        "seconds": event.duration / 1e9,
        "code": "OK" if not event.code else errors.name(event.code),
        "error": event.message or None,
        "trace": event.trace or None,
    }
