"""``splitd trace ...``: where the time of pulls and other operations went. Lists traces, shows one with its verdict,
compares two, exports and imports them, and shows what is in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import datetime
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from client import files, span_words, trace_files, trace_formats, trace_live, trace_views, waterfall
from client.screen import Screen
from client.shown import Style, can_draw, complain, has_colours, painted, say, say_painted, table
from deploy import place, slow, traces, transferring
from deploy.failure import Failure
from deploy.traces import Source
from deploy.verbs.images import age
from services.kit import errors
from services.traces import comparison, otlp_json, slowest
from services.traces import tree as trees
from services.traces.comparison import Comparison
from services.traces.slowest import WhySlow
from services.traces.store import Query, Trace
from services.traces.verdict import Verdict

T = TypeVar("T")

HELP = "show where the time of pulls and other operations went, and what is in flight"

LIMIT = 100
"""Traces that are listed or looked at, if --limit does not say."""
MOST = 10_000
"""The greatest --limit."""
SHORT = 12
"""Digits of an id that people are shown."""
COLUMNS = 120
"""The width of what is printed, if it is no terminal and COLUMNS is not set."""
BATCH = 1000
"""Spans that are imported at once."""
REFRESH = 1.0
"""Seconds from one view of what is in flight to the next; processes report as often."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(slow="0", failed=False, image="", operation="", since="", namespace="", limit=LIMIT, file="")
    made = transferring.actions(parser, namespace=False)

    def action(name: str, help_: str, *aliases: str) -> argparse.ArgumentParser:
        one = made(name, help_, *aliases)
        one.add_argument("--json", action="store_true", help="print JSON")
        return one

    list_ = action("list", "print the operations that were traced, the newest first (the default action)", "ls")
    _add_selection(list_)
    list_.add_argument(
        "--all", action="store_true", default=False, help="also single calls, and collections that went well"
    )
    _add_file(list_)

    show = action(
        "show", "print what an operation waited for, and its spans as a waterfall, in which * marks the critical path"
    )
    show.add_argument(
        "trace", nargs="?", default=None, metavar="TRACE", help="its id, or how that begins (default: the newest pull)"
    )
    show.add_argument("--all", action="store_true", default=False, help="give every span a line of its own")
    _add_file(show)

    compare = action("compare", "compare two operations stage by stage, such as two pulls of one image")
    compare.add_argument("first", metavar="TRACE", help="the id of the first, or how that begins")
    compare.add_argument("second", metavar="TRACE", help="the id of the second")
    _add_file(compare)

    why = action(
        "why-slow",
        "print what the slowest tenth of the last pulls have in common and the others have not, such as a host",
    )
    _add_selection(why, operation="pull")
    _add_file(why)

    export = action("export", "write a trace for other programs")
    export.add_argument("trace", metavar="TRACE", help="its id, or how that begins")
    export.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="otlp",
        help="otlp: OTLP JSON (default); chrome: trace events, for ui.perfetto.dev; speedscope: for speedscope.app",
    )
    export.add_argument("-o", "--output", default="-", metavar="FILE", help="the file (default: standard output)")
    _add_file(export)

    import_ = action("import", "put the traces of a file (OTLP JSON or protobuf) into the node's store")
    import_.add_argument("file", metavar="FILE", help="- is standard input")

    action("top", "print what is in flight: each operation, its stages, how long, and who holds what it waits for")


def run(arguments: argparse.Namespace) -> int:
    action = {None: "list", "ls": "list"}.get(arguments.action, arguments.action)
    return ACTIONS[action](arguments)


def _add_selection(parser: argparse.ArgumentParser, operation: str = "") -> None:
    parser.add_argument(
        "--slow",
        nargs="?",
        const=None,
        default="0",
        metavar="DURATION",
        help="only those that took so long or longer: 100ms, 90s, 2m (without it: as [traces] slow says, 10s)",
    )
    parser.add_argument("--failed", action="store_true", default=False, help="only those that failed")
    parser.add_argument("--image", default="", metavar="NAME", help="only those of images with NAME in their names")
    parser.add_argument(
        "--operation",
        default=operation,
        metavar="KIND",
        help="only those of one kind: pull, push, run, exec, delete, collect and others"
        + (f" (default: {operation})" if operation else ""),
    )
    parser.add_argument(
        "--since", default="", metavar="TIME", help="only those of the last 90s, 15m, 2h or 3d, or since a date"
    )
    parser.add_argument("-n", "--namespace", default="", metavar="NAME", help="only those of one namespace")
    parser.add_argument("--limit", type=int, default=LIMIT, metavar="N", help=f"at most N of them (default: {LIMIT})")


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--file",
        default="",
        metavar="FILE",
        help="take the traces of a file (OTLP JSON or protobuf), not those of the node; - is standard input",
    )


# ---------------------------------------------------------------------------------------------- where from


_NUMBER = r"(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})"
_PART = re.compile(f"({_NUMBER})(ms|[smhd])")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LATEST = 2**63 - 1
"""The latest time that can be asked for, in nanoseconds since the epoch."""


def duration(text: str) -> float | None:
    """The seconds of ``100ms``, ``90s``, ``1h30m`` or ``2d``, or of a number, which is of seconds; None if it is none
    of them.
    """
    if re.fullmatch(_NUMBER, text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def since(text: str, now: int) -> int:
    """The time that --since means, in nanoseconds since the epoch, as ``now`` is. A Failure if it means none."""
    if not text:
        return 0
    try:
        moment = datetime.datetime.fromisoformat(text)  # 20261129 is one, too
        meant = (moment if moment.tzinfo else moment.astimezone()).timestamp()
    except (ValueError, OverflowError):  # astimezone() raises them before the year 1 and after 9999
        if (ago := duration(text)) is not None:
            return max(0, now - round(ago * 1e9))
        raise Failure(
            f"--since {text!r} is no time: say 90s, 15m, 2h, 3d, or a date such as 2026-11-29T20:00:00Z", 2
        ) from None
    return min(max(0, int(meant * 1e9)), _LATEST)


def query(arguments: argparse.Namespace) -> Query:
    """What the options select."""
    if not 0 < arguments.limit <= MOST:
        raise Failure(f"--limit {arguments.limit}: say 1 to {MOST}", 2)
    longer = slow.seconds(place.find(arguments)) if arguments.slow is None else duration(arguments.slow)
    if longer is None or longer >= 1e9:
        raise Failure(f"--slow {arguments.slow!r} is no duration: say 100ms, 90s, 2m or 1h, or a number of seconds", 2)
    return Query(
        since=since(arguments.since, time.time_ns()),
        operation=arguments.operation,
        image=arguments.image,
        namespace=arguments.namespace,
        failed=arguments.failed,
        longer=longer,
        limit=arguments.limit,
        operations=not (getattr(arguments, "all", False) or arguments.operation or arguments.file),
    )


def _asked(arguments: argparse.Namespace, ask: Callable[[Source], Awaitable[T]]) -> T:
    """The answer of the node, or of the file that --file names."""
    read = trace_files.read(arguments.file) if arguments.file else None

    async def asked() -> T:
        if read is not None:
            return await ask(await traces.of_file(read))
        async with traces.of_node(place.find(arguments)) as node:
            return await ask(node)

    return transferring.run(asked())


async def _named(source: Source, prefix: str, file: str, off: str = "") -> Trace:
    """The trace whose id begins so, of the node or of ``file``. A Failure if it is no id, or if not exactly one begins
    so; if none does, ``off`` may be the reason.
    """
    if not re.fullmatch("[0-9a-fA-F]{1,32}", prefix):
        raise Failure(f"{prefix!r} is no id of a trace: those have 32 hex digits, of which the first few are enough", 2)
    try:
        return await source.trace(prefix.lower())
    except errors.NotFound as error:
        kept = "in it" if file else "that are kept"
        raise Failure(f"{error} (splitd trace ls{_of(file)} prints those {kept})", more=[off] if off else ()) from None
    except errors.InvalidArgument as error:
        raise Failure(str(error).removesuffix(f": {error.suffix}")) from None


def _of(file: str) -> str:
    """The option that names a file in a command that is recommended."""
    return f" --file {shlex.quote(file)}" if file else ""


# ---------------------------------------------------------------------------------------------- list and show


def list_traces(arguments: argparse.Namespace) -> int:
    wanted = query(arguments)
    found = _asked(arguments, lambda source: traces.listed(source, wanted))
    if arguments.json:
        print(json.dumps([trace_views.summary_json(trace) for trace in found], indent=2))
        return 0
    if not found and (off := _off(arguments)):
        complain(off)
    now = time.time_ns()
    rows = [("TRACE", "BEGUN", "TOOK", "OPERATION", "OUTCOME", "SPANS", "NAMESPACE", "ABOUT")]
    for trace in found:
        rows.append(
            (
                trace.id[:SHORT],
                age(now - trace.start),
                span_words.seconds(trace.seconds),
                trace.operation or "-",
                trace.outcome or ("failed" if trace.failed else "-"),
                str(trace.spans),
                trace.namespace or "-",
                trace_views.about(trace),
            )
        )
    table(rows)
    return 0


def show(arguments: argparse.Namespace) -> int:
    async def found(source: Source) -> tuple[Trace, Verdict]:
        off = _off(arguments)
        prefix = arguments.trace
        if prefix is None:
            prefix = await (_of_all(source) if arguments.file else _newest(source, off))
        if off and arguments.trace is None:
            complain(off)  # the newest that is kept need not be the newest that there was
        under_way = await traces.under_way(source, prefix)
        if under_way is None:
            trace = await _named(source, prefix, arguments.file, off)
        else:
            trace = under_way
            complain("the operation is still under way: this is what is known so far (splitd trace top shows the rest)")
        return trace, await traces.judged(source, trace)

    trace, verdict = _asked(arguments, found)
    if arguments.json:
        print(json.dumps(trace_views.trace_json(trace, verdict), indent=2))
        return 0
    columns = shutil.get_terminal_size((COLUMNS, 24)).columns
    tree = trees.tree(trace)
    say_painted(*trace_views.paragraph(verdict, columns), [], *trace_views.heading(tree, len(trace.spans), columns), [])
    if lines := trace_views.causes(verdict, columns):
        say_painted(*lines, [])
    parts = trace_views.parts(tree, verdict.path)
    say_painted(
        *waterfall.draw(
            waterfall.rows(tree, parts, everything=arguments.all),
            tree.root.start,
            tree.root.end,
            columns,
            ascii_only=not can_draw(),
        )
    )
    return 0


async def _newest(source: Source, off: str) -> str:
    """The id of the newest pull. If there is none, ``off`` may be the reason."""
    if newest := await traces.newest(source, "pull"):
        return newest
    raise Failure(off or "no pull has been traced (splitd trace ls prints what has been)")


async def _of_all(source: Source) -> str:
    """The id of the newest pull in a file; if there is none, of the newest operation, or else of the newest trace."""
    for query in (Query(operation="pull", limit=1), Query(operations=True, limit=1), Query(limit=1)):
        if found := await source.traces(query):
            return found[0].id
    raise Failure("the file has no trace")  # no file without spans is read


def _off(arguments: argparse.Namespace) -> str:
    """Why the node traces nothing; "" if it does, or if a file is looked at."""
    return "" if arguments.file else traces.untraced(place.find(arguments))


# ---------------------------------------------------------------------------------------------- several


def compare(arguments: argparse.Namespace) -> int:
    async def found(source: Source) -> Comparison:
        first, second = [await _named(source, each, arguments.file) for each in (arguments.first, arguments.second)]
        return comparison.compare(first, second, await traces.others(source, first, second))

    compared = _asked(arguments, found)
    if arguments.json:
        print(json.dumps(trace_views.comparison_json(compared), indent=2))
        return 0
    columns = shutil.get_terminal_size((COLUMNS, 24)).columns
    say_painted(*trace_views.wrapped(compared.sentence, columns, Style.BOLD), [])
    table(trace_views.comparison_rows(compared))
    return 0


def why_slow(arguments: argparse.Namespace) -> int:
    wanted = query(arguments)

    async def found(source: Source) -> WhySlow:
        read = []
        for summary in await source.traces(wanted):
            with contextlib.suppress(errors.NotFound):  # the store drops the oldest at any time
                read.append(await source.trace(summary.id))
        return slowest.why_slow(read, wanted.operation or "pull")

    why = _asked(arguments, found)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(why), indent=2))
        return 0
    columns = shutil.get_terminal_size((COLUMNS, 24)).columns
    say_painted(*trace_views.wrapped(why.sentence, columns, Style.BOLD))
    if why.findings:
        say("")
        table(trace_views.findings(why))
    if why.slow:
        slowest_ = why.slow[0][:SHORT]
        say("", f"the slowest is {slowest_}: splitd trace show {slowest_}{_of(arguments.file)} says what it waited for")
    return 0


# ---------------------------------------------------------------------------------------------- files


def _otlp(trace: Trace, _: Verdict) -> Mapping[str, Any]:
    return otlp_json.spans_to_json(trace.spans)


def _chrome(trace: Trace, verdict: Verdict) -> Mapping[str, Any]:
    return trace_formats.chrome(trace, {segment.span.id for segment in verdict.path})


def _speedscope(trace: Trace, verdict: Verdict) -> Mapping[str, Any]:
    title = f"{verdict.operation} {verdict.image}".rstrip() + f" {trace.id[:SHORT]}"
    return trace_formats.speedscope(trace, title, trace_views.stacks(trees.tree(trace), verdict.path))


FORMATS: Mapping[str, Callable[[Trace, Verdict], Mapping[str, Any]]] = {
    "otlp": _otlp,
    "chrome": _chrome,
    "speedscope": _speedscope,
}


def export(arguments: argparse.Namespace) -> int:
    async def found(source: Source) -> tuple[Trace, Verdict]:
        trace = await _named(source, arguments.trace, arguments.file)
        return trace, await traces.judged(source, trace)

    document = FORMATS[arguments.format](*_asked(arguments, found))
    if arguments.output == "-":
        print(json.dumps(document))
        return 0
    with files.replaced(arguments.output) as fd, open(fd, "w", closefd=False) as file:
        json.dump(document, file)
    return 0


def import_traces(arguments: argparse.Namespace) -> int:
    read = trace_files.read(arguments.file)

    async def imported() -> tuple[int, str]:
        dropped, why = 0, ""
        async with traces.of_node(place.find(arguments)) as node:
            for begin in range(0, len(read.spans), BATCH):
                lost, reason = await node.export(read.spans[begin : begin + BATCH])
                dropped, why = dropped + lost, reason or why
        return dropped, why

    dropped, why = transferring.run(imported())
    found = sorted({span.trace for span in read.spans})
    if arguments.json:
        lost = {"refused": read.refused, "dropped": dropped}
        print(json.dumps({"traces": found, "spans": len(read.spans) - dropped, **lost}))
        return 0
    said = f"trace {found[0][:SHORT]}" if len(found) == 1 else f"{len(found)} traces"
    say(f"imported {said}: {len(read.spans) - dropped} spans of {read.name}")
    traces.complain_of(read)
    if dropped:
        complain(f"the traces service dropped {dropped} spans: {why}")
    return 0


# ---------------------------------------------------------------------------------------------- in flight


def top(arguments: argparse.Namespace) -> int:
    watched = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not arguments.json

    async def looked() -> None:
        async with traces.of_node(place.find(arguments)) as node:
            if not watched:
                await node.live()
                await asyncio.sleep(traces.FRESH)
            screen = Screen(_write)
            while True:
                live = await node.live()
                flying = trace_live.flights(live)
                columns, rows = shutil.get_terminal_size((COLUMNS, 24))
                if arguments.json:
                    print(json.dumps(trace_live.flights_json(live, flying), indent=2))
                elif not watched:
                    say_painted(*trace_live.lines(flying, columns))
                else:
                    shown = trace_live.lines(flying, columns, rows)
                    screen.draw([painted(line, colours=has_colours()) for line in shown], columns, rows)
                if not watched:
                    return
                await asyncio.sleep(REFRESH)

    if off := traces.untraced(place.find(arguments)):
        complain(off)
    try:
        transferring.run(looked())
    except Failure as failure:
        if not (watched and failure.code == 128 + signal.SIGINT):  # Ctrl-C is how one leaves it
            raise
    return 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": list_traces,
    "show": show,
    "compare": compare,
    "why-slow": why_slow,
    "export": export,
    "import": import_traces,
    "top": top,
}
