"""``splitd fault SERVICE.METHOD``: delays or fails calls to a service for a while, to see what clients do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from client.shown import say, table
from client.taps_remote import Asked, RemoteTaps, Standing
from deploy import place, routing
from deploy.failure import Failure
from deploy.verbs.tap import took
from services.kit.settings import format_duration

HELP = "delay or fail calls to a service for a while, to see what its clients do when it is slow or fails"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "calls",
        nargs="?",
        default="",
        metavar="SERVICE.METHOD",
        help=(
            "which calls: SERVICE is content, snapshots (all of them), snapshots.NAME, metadata, images, tasks, diff, "
            "sandbox (all controllers), sandbox.NAME, or ROUTE@NAME of a candidate; METHOD is a method's name, or * "
            "for all"
        ),
    )
    parser.add_argument(
        "--latency", type=routing.duration, default=0.0, metavar="DURATION", help="delay them, such as by 200ms"
    )
    parser.add_argument(
        "--error", type=str.upper, default="", metavar="CODE", help="fail them with a code of gRPC, such as UNAVAILABLE"
    )
    parser.add_argument(
        "--share", type=routing.percent, default=100.0, metavar="PERCENT", help="only so many of them, such as 5%%"
    )
    parser.add_argument(
        "--for",
        dest="lasts",
        type=routing.duration,
        default=60.0,
        metavar="DURATION",
        help="it is over after this time (default 1m)",
    )
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--before", action="store_true", help="a call that fails never arrives (the default)")
    when.add_argument("--after", action="store_true", help="a call that fails is done, and its answer is lost")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the same sequence of calls gets the same faults each time"
    )
    parser.add_argument("--namespace", "-n", default="", metavar="NAMESPACE", help="only calls in this namespace")
    other = parser.add_argument_group("faults that there are")
    other.add_argument("--list", action="store_true", help="list them, with how many calls each was in")
    other.add_argument("--stop", nargs="?", const="", metavar="ID", help="end one; with --all, all of them")
    other.add_argument("--all", action="store_true", help="end all of them")
    other.add_argument("--json", action="store_true", help="print JSON, for --list")


def run(arguments: argparse.Namespace) -> int:
    stops = arguments.stop is not None or arguments.all
    if bool(arguments.calls) + arguments.list + stops != 1:
        raise Failure("say SERVICE.METHOD with --latency or --error, or --list, or --stop ID, or --all", 2)
    if arguments.json and not arguments.list:
        raise Failure("--json is for --list", 2)
    if stops:
        return _stop(arguments)
    return _list(arguments) if arguments.list else _begin(arguments)


def _begin(arguments: argparse.Namespace) -> int:
    service, dot, method = arguments.calls.rpartition(".")
    if not dot or not service or not method:
        raise Failure(f"{arguments.calls}: say SERVICE.METHOD, such as content.Write, or content.* for all methods", 2)
    if not (arguments.latency or arguments.error):
        raise Failure("say --latency, or --error, or both", 2)
    here = place.find(arguments)
    asked = Asked(
        service=service,
        method=method,
        namespace=arguments.namespace,
        latency=arguments.latency,
        error=arguments.error,
        share=arguments.share / 100,
        seconds=arguments.lasts,
        after=arguments.after,
        seed=arguments.seed,
    )

    async def begun() -> Standing:
        async with routing.internal(here) as channel:
            return await RemoteTaps(channel).fault(asked)

    fault = routing.run(here, begun())
    say(
        f"fault {fault.id}, over in {format_duration(arguments.lasts)}: {fault.words}",
        f"errors say: injected by splitd fault ({fault.id}); {here.hint(f'fault --stop {fault.id}')} ends it sooner",
    )
    return 0


def _list(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)

    async def found() -> list[Standing]:
        async with routing.internal(here) as channel:
            return await RemoteTaps(channel).faults()

    faults = routing.run(here, found())
    if arguments.json:
        print(json.dumps([_described(fault) for fault in faults], indent=2))
    elif faults:
        rows = [(each.id, _left(each), str(each.seen), str(each.injected), each.words) for each in faults]
        table([("FAULT", "OVER IN", "CALLS", "INJECTED", "WHAT"), *rows])
    else:
        say("there are no faults")
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    if bool(arguments.stop) == arguments.all:
        raise Failure("say --stop ID, or --all (splitd fault --list shows the ids)", 2)
    here = place.find(arguments)

    async def stopped() -> Sequence[Standing]:
        async with routing.internal(here) as channel:
            return await RemoteTaps(channel).stop(arguments.stop or "")

    for fault in routing.run(here, stopped()):
        say(f"fault {fault.id} has ended: it was in {fault.injected} of {fault.seen} calls")
    return 0


def _left(fault: Standing) -> str:
    return format_duration(round(fault.left)) if fault.left >= 1 else took(round(fault.left * 1e9))


def _described(fault: Standing) -> dict[str, str | int | float]:
    return {
        "id": fault.id,
        "words": fault.words,
        "left": round(fault.left, 3),
        "calls": fault.seen,
        "injected": fault.injected,
    }
