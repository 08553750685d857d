"""``splitd shadow ...``: sends another service copies of live calls, and compares its answers with ours."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence

from client.shown import say, table
from deploy import place, routing
from deploy.failure import Failure
from deploy.place import Place
from services.kit.addresses import Address
from services.shadows.remote import Shadows
from services.shadows.store import Difference, Latency, MethodReport, Report, Shadow

HELP = "send another service copies of the live calls to one of this node's, and compare its answers with ours"

ACTIONS = ("report", "list", "stop")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="SERVICE|report|list|stop",
        help="the service whose calls are copied, such as content or snapshots.overlayfs; or what to do",
    )
    parser.add_argument("service", nargs="?", default="", metavar="SERVICE", help="for report and stop")
    parser.add_argument(
        "--address", metavar="ADDRESS", default="", help="the other service: /path of a unix socket, or HOST:PORT"
    )
    parser.add_argument(
        "--share",
        type=routing.percent,
        metavar="PERCENT",
        default=100.0,
        help="copy so many of the reads, such as 10%% (default: all)",
    )
    parser.add_argument(
        "--store",
        metavar="DIR",
        default="",
        help="the directory of the other service's own store, where its stamp does not say that it has one: it gets "
        "copies of writes, too",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    routing.add_tls(parser)


def run(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)
    if arguments.what not in ACTIONS:
        return _start(here, arguments)
    if arguments.address or arguments.store:
        raise Failure(f"--address and --store begin a shadow, and are not for {arguments.what}", 2)
    if arguments.what == "list":
        if arguments.service:
            raise Failure(f"list shows all shadows: {arguments.service} is one word too many", 2)
        return _list(here, json_=arguments.json)
    reports = [_stopped(here, arguments.service)] if arguments.what == "stop" else _reports(here, arguments.service)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(report) for report in reports], indent=2))
        return 0
    for report in reports:
        show(report)
    return 0


def _start(here: Place, arguments: argparse.Namespace) -> int:
    if arguments.service:
        raise Failure(f"{arguments.what}: not one of {', '.join(ACTIONS)}", 2)
    if not arguments.address:
        raise Failure(f"--address is missing: where is the service that gets copies of calls to {arguments.what}?", 2)
    try:
        where = Address(address=arguments.address, **routing.tls(arguments))
    except ValueError as error:
        raise Failure(str(error), 2) from None

    async def started() -> Shadow:
        async with routing.internal(here) as gateway:
            return await Shadows(gateway).start(arguments.what, where, share=arguments.share, root=arguments.store)

    made = routing.run(here, started())
    if arguments.json:
        print(json.dumps(dataclasses.asdict(made), indent=2))
        return 0
    say(f"{made.address} gets copies of the calls to {made.route}")
    if not made.writes:
        say("only reads: nothing says that it has a store of its own (its stamp, or --store)")
    say(f"see what differs: {here.hint(f'shadow report {made.route}')}")
    return 0


def _list(here: Place, *, json_: bool) -> int:
    async def listed() -> Sequence[Shadow]:
        async with routing.internal(here) as gateway:
            return await Shadows(gateway).list()

    found = routing.run(here, listed())
    if json_:
        print(json.dumps([dataclasses.asdict(each) for each in found], indent=2))
    elif found:
        table([("SERVICE", "ADDRESS", "SHARE", "COPIES", "SINCE", "TROUBLE"), *map(_row, found)])
    else:
        say("no service has a shadow")
    return 0


def _row(shadow: Shadow) -> Sequence[str]:
    return (
        shadow.route,
        shadow.address,
        f"{shadow.share:g}%",
        "reads and writes" if shadow.writes else "reads",
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(shadow.since)),
        shadow.trouble or "-",
    )


def _stopped(here: Place, route: str) -> Report:
    if not route:
        raise Failure("which shadow? splitd shadow stop SERVICE", 2)

    async def stopped() -> Report:
        async with routing.internal(here) as gateway:
            return await Shadows(gateway).stop(route)

    return routing.run(here, stopped())


def _reports(here: Place, route: str) -> Sequence[Report]:
    async def all_of() -> Sequence[Report]:
        async with routing.internal(here) as gateway:
            shadows = Shadows(gateway)
            routes = [route] if route else [each.route for each in await shadows.list()]
            return [await shadows.report(each) for each in routes]

    found = routing.run(here, all_of())
    if not found:
        raise Failure("no service has a shadow")
    return found


def show(report: Report) -> None:
    """Print a report for people."""
    shadow = report.shadow
    say(f"{shadow.route}: copies to {shadow.address}" + (f" ({shadow.trouble})" if shadow.trouble else ""))
    if not report.methods:
        say("nothing was called yet")
        return
    table(
        [
            ("METHOD", "CALLS", "SAME", "DIFFERENT", "SKIPPED", "DROPPED", "P50 OURS", "THEIRS", "P99 OURS", "THEIRS"),
            *map(_method, report.methods),
        ]
    )
    for method in report.methods:
        for reason, count in sorted(method.skipped.items()):
            say(f"{method.method}: {count} skipped, since {reason}")
        for difference in method.differences:
            _show_difference(method, difference)


def _method(found: MethodReport) -> Sequence[str]:
    return (
        found.method,
        str(found.calls),
        str(found.same),
        str(found.different),
        str(sum(found.skipped.values())),
        str(found.dropped),
        _time(found.ours, found.ours.p50),
        _time(found.candidate, found.candidate.p50),
        _time(found.ours, found.ours.p99),
        _time(found.candidate, found.candidate.p99),
    )


def _time(latency: Latency, seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if latency.count else "-"


def _show_difference(method: MethodReport, difference: Difference) -> None:
    noise = f"; ours differed from itself in {difference.noise} of {difference.asked}" if difference.noise else ""
    say("", f"{method.method}: {difference.name} differs in {difference.count} calls{noise}")
    for example in difference.examples:
        say(
            f"  {example.request}",
            f"    {example.where}: ours {example.ours!r}, theirs {example.candidate!r}"
            + (f" (trace {example.trace})" if example.trace else ""),
        )
