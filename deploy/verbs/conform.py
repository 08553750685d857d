"""``splitd conform ADDRESS``: tries the rules of an interface (conform/) on a process that serves it, whoever wrote it,
and says which it does not keep.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.shown import Style, complain, say, say_painted
from conform.rules import Rule
from conform.running import RULES, Outcome, Result, Run
from conform.service_remote import CannotRun, Service, opened
from deploy.failure import Failure, mistyped
from services.kit import loops
from services.kit.addresses import Address

HELP = (
    "try the rules of containerd's content store or snapshotter on a process that serves it, ours or a stranger's, and "
    "say what fails: with the call, what was expected, what came, and the source of the rule"
)

CANNOT = 2
"""The exit code if nothing could be tried."""

STYLES = {
    Outcome.KEPT: Style.PLAIN,
    Outcome.BROKEN: Style.ERROR,
    Outcome.NOT_OFFERED: Style.DIM,
    Outcome.NOT_RUN: Style.DIM,
}
_WIDTH = max(map(len, Outcome)) + 2
_TITLES = max(len(rule.title) for rules in RULES.values() for rule in rules)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address", nargs="?", metavar="ADDRESS", help="the path of a unix socket (also as unix:PATH), or HOST:PORT"
    )
    parser.add_argument("--type", choices=tuple(RULES), help="what it serves, as in containerd's proxy_plugins")
    parser.add_argument("--only", action="append", default=[], metavar="RULE", help="try this rule; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the rules with their sources, and try none")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--snapshotter",
        default="",
        metavar="NAME",
        help=(
            "the snapshotter's name in each request (default: overlayfs of a daemon; others ignore it). The mounts of "
            "overlayfs and native are compared with containerd's"
        ),
    )
    parser.add_argument(
        "--namespace", default="", metavar="NAME", help="containerd's namespace of each call (default: one of its own)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="the longest that one call may take (default: 10)",
    )
    parser.add_argument(
        "--mounts",
        type=Path,
        metavar="DIR",
        help="where snapshots may be mounted (default: the directory for temporary files)",
    )
    parser.add_argument(
        "--allow-writes",
        action="store_true",
        help="also if the store belongs to a node, whose collector may remove what a rule has made",
    )
    tls = parser.add_argument_group("TLS, for HOST:PORT")
    tls.add_argument("--tls", action="store_true", help="connect by TLS, as each of the next options does")
    tls.add_argument("--ca", default="", metavar="FILE", help="authorities that may have signed its certificate (PEM)")
    tls.add_argument("--cert", default="", metavar="FILE", help="the certificate to show it (PEM)")
    tls.add_argument("--key", default="", metavar="FILE", help="the key of that certificate (PEM)")
    tls.add_argument("--server-name", default="", metavar="NAME", help="the name in its certificate")


def run(arguments: argparse.Namespace) -> int:
    if arguments.type is None:
        raise Failure("say what it serves: --type content, or --type snapshot", CANNOT)
    rules = _chosen(arguments.type, arguments.only)
    if arguments.list:
        return _list(rules, as_json=arguments.json)
    if arguments.address is None:
        raise Failure("say where it listens: the path of its socket, or HOST:PORT", CANNOT)
    if not 0 < arguments.timeout <= 600:
        raise Failure(f"--timeout {arguments.timeout:g}: between 0 and 600 seconds", CANNOT)
    if arguments.mounts is not None and not arguments.mounts.is_dir():
        raise Failure(f"--mounts {arguments.mounts}: no such directory", CANNOT)
    return asyncio.run(_guarded(arguments, _address(arguments), rules))


def _address(arguments: argparse.Namespace) -> Address:
    try:
        return Address(
            address=arguments.address,
            tls=arguments.tls,
            ca=arguments.ca,
            cert=arguments.cert,
            key=arguments.key,
            server_name=arguments.server_name,
        )
    except ValueError as error:
        raise Failure(str(error), CANNOT) from error


def _chosen(kind: str, only: Sequence[str]) -> Sequence[Rule]:
    """The rules of these names, all without names."""
    known = {rule.title: rule for rule in RULES[kind]}
    for name in only:
        if name.replace("_", "-") not in known:
            raise Failure(mistyped(name, list(known), "rule"), CANNOT)
    return [known[name.replace("_", "-")] for name in only] or list(RULES[kind])


def _list(rules: Sequence[Rule], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps([_described(rule) for rule in rules], indent=2))
        return 0
    for rule in rules:
        marks = [f"optional: {rule.optional}"] if rule.optional else []
        marks += ["mounts, as root"] if rule.mounts else []
        head = f"{rule.title} ({'; '.join(marks)})" if marks else rule.title
        say(head, f"  {rule.promise}", f"  source: {rule.source}")
    return 0


def _described(rule: Rule) -> dict[str, Any]:
    return {
        "rule": rule.title,
        "promise": rule.promise,
        "source": rule.source,
        "optional": rule.optional or None,
        "mounts": rule.mounts,
    }


async def _guarded(arguments: argparse.Namespace, where: Address, rules: Sequence[Rule]) -> int:
    """Try the rules. A signal ends the run, which then cleans up behind itself; a second one ends that too."""
    task, loop = loops.task("the rules", _run(arguments, where, rules)), asyncio.get_running_loop()
    caught: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        caught.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not caught:
            raise
        return 128 + caught[0]


async def _run(arguments: argparse.Namespace, where: Address, rules: Sequence[Rule]) -> int:
    prefix = f"splitd-conform-{os.urandom(4).hex()}"
    begun, results = time.monotonic(), list[Result]()
    service: Service | None = None
    trying: Run | None = None
    try:
        async with opened(
            where,
            arguments.type,
            name=prefix,
            namespace=arguments.namespace,
            snapshotter=arguments.snapshotter,
            seconds=arguments.timeout,
        ) as service:
            _refuse_a_nodes_store(arguments, service)
            if not arguments.json:
                what = f"of a daemon, in namespace {arguments.namespace or prefix}" if service.namespaced else "raw"
                say(f"{arguments.type} at {arguments.address} ({what}); what this makes begins with {prefix}")
            trying = Run(service, prefix, arguments.mounts, arguments.snapshotter)
            async with contextlib.aclosing(trying.results(rules)) as each:
                async for result in each:
                    results.append(result)
                    if not arguments.json:
                        _show(result)
    except CannotRun as error:
        raise Failure(str(error), CANNOT) from error
    finally:
        if service is not None and trying is not None:
            left = [*trying.left, *service.left]
            seconds = time.monotonic() - begun
            if arguments.json:
                print(json.dumps(_document(arguments, service, prefix, results, left, len(rules)), indent=2))
            else:
                _summary(results, left, len(rules), seconds)
    if any(result.outcome is Outcome.BROKEN for result in results):
        return 1
    if all(result.outcome is Outcome.NOT_RUN for result in results):
        raise Failure("no rule could be tried", CANNOT)
    return 0


def _refuse_a_nodes_store(arguments: argparse.Namespace, service: Service) -> None:
    if service.owner and not arguments.allow_writes:
        raise Failure(
            f"{arguments.address} is the store of a splitd node ({service.owner}), whose collector removes what the "
            "node's records do not name, also what a rule has just made: use the node's containerd.sock, or add "
            "--allow-writes",
            CANNOT,
        )


# ------------------------------------------------------------------------------------------ what is shown


def _show(result: Result) -> None:
    rule, style = result.rule, STYLES[result.outcome]
    head = (f"{result.outcome:<{_WIDTH}}", style)
    if result.outcome is Outcome.KEPT:
        say_painted([head, (f"{rule.title:<{_TITLES}}", Style.PLAIN), (f"{result.seconds:>8.2f} s", Style.DIM)])
    elif result.outcome is not Outcome.BROKEN:
        say_painted([head, (f"{rule.title}: {result.reason}", style)])
    else:
        say_painted([head, (rule.title, Style.BOLD)])
        asked = result.asked[-1] if result.asked else None
        lines = [("promise", rule.promise)]
        if asked is not None:
            lines.append(("call", f"{asked.method} {{{asked.request}}}: {asked.answer}"))
        lines += [("expected", result.expected), ("came", result.came), ("source", rule.source)]
        say(*(f"{'':{_WIDTH}}{name + ':':<10}{text}" for name, text in lines))
    say(*(f"{'':{_WIDTH}}not offered: {note}" for note in result.notes))


def _summary(results: Sequence[Result], left: Sequence[str], wanted: int, seconds: float) -> None:
    counts = collections.Counter(result.outcome for result in results)
    words = [f"{counts[Outcome.KEPT]} kept", f"{counts[Outcome.BROKEN]} broken"]
    words += [f"{counts[each]} {each}" for each in (Outcome.NOT_OFFERED, Outcome.NOT_RUN) if counts[each]]
    cut = f" (interrupted; {wanted - len(results)} not tried)" if len(results) < wanted else ""
    verdict = "does not conform" if counts[Outcome.BROKEN] else "conforms" if counts[Outcome.KEPT] else "not tried"
    say(f"{verdict if not cut else 'not done'}: {len(results)} rules, {', '.join(words)}, in {seconds:.1f} s{cut}")
    complain(*(f"not cleaned up: {each}" for each in left))


def _document(
    arguments: argparse.Namespace,
    service: Service,
    prefix: str,
    results: Sequence[Result],
    left: Sequence[str],
    wanted: int,
) -> dict[str, Any]:
    counts = collections.Counter(result.outcome for result in results)
    return {
        "address": arguments.address,
        "type": arguments.type,
        "namespaced": service.namespaced,
        "prefix": prefix,
        "conforms": not counts[Outcome.BROKEN] and bool(counts[Outcome.KEPT]) and len(results) == wanted,
        "counts": {str(outcome): counts[outcome] for outcome in Outcome},
        "rules": [
            {
                **_described(result.rule),
                "outcome": str(result.outcome),
                "seconds": round(result.seconds, 3),
                "expected": result.expected or None,
                "came": result.came or None,
                "reason": result.reason or None,
                "calls": [
                    {"method": asked.method, "request": asked.request, "answer": asked.answer} for asked in result.asked
                ],
                "not_offered": list(result.notes),
            }
            for result in results
        ],
        "left": list(left),
    }
