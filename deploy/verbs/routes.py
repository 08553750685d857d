"""``splitd routes``: where the node's calls go: each route, its own service, and the candidates beside it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from client.routes_remote import RouteStands, Stands
from client.shown import say, table
from deploy import place, routing

HELP = "print where calls go: each route with its service, candidates (splitd replace), and what stands around them"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)

    async def found() -> list[RouteStands]:
        async with routing.connected(here) as routes:
            return await routes.all()

    routes = routing.run(here, found())
    if arguments.json:
        print(json.dumps([described(each) for each in routes], indent=2))
        return 0
    table(
        [
            ("ROUTE", "SERVICE", "ADDRESS", "STATE", "TAKES", "OBJECTS", "CALLS", "FAILED"),
            *(row for each in routes for row in _rows(each)),
        ]
    )
    for each in routes:
        say(*([f"{each.name} is down: {each.trouble}"] if each.trouble else []))
        say(*(f"{each.name}: {words}" for words in each.instruments))
        for candidate in each.candidates:
            say(*_remarks(candidate))
    return 0


def _remarks(candidate: Stands) -> list[str]:
    name = candidate.terms.backend
    found = [f"{name}: {words}" for words in candidate.instruments]
    if candidate.drained:
        found.append(f"{name} is draining: {candidate.drained}")
    if candidate.trouble:
        found.append(f"{name} is down: {candidate.trouble}")
    if candidate.sent_home:
        found.append(f"{name} was down when {candidate.sent_home:,} new objects were chosen for it: they went home")
    return found


def _rows(route: RouteStands) -> list[tuple[str, ...]]:
    taking = [each for each in route.candidates if not each.drained]
    home = (
        route.name,
        "proxy plugin" if route.foreign else "own",
        route.address,
        "down" if route.trouble else "up",
        "the rest" if taking else "all",
        "-",
        "-",
        "-",
    )
    return [home, *(_row(route.name, each) for each in route.candidates)]


def _row(route: str, candidate: Stands) -> tuple[str, ...]:
    return (
        route,
        candidate.terms.name,
        candidate.terms.address,
        state(candidate),
        "nothing" if candidate.drained else routing.takes(candidate.terms),
        "-" if candidate.objects < 0 else f"{candidate.objects:,}",
        f"{candidate.calls:,}" if candidate.terms.judged else "-",
        f"{candidate.failures:,}" if candidate.terms.judged else "-",
    )


def state(candidate: Stands) -> str:
    """draining, down or up."""
    return "draining" if candidate.drained else "down" if candidate.trouble else "up"


def described(route: RouteStands) -> dict[str, Any]:
    """A route as JSON. Moments are in seconds since 1970, 0 is never; shares are in percent. ``objects`` is -1 if it is
    not known. ``calls`` and ``failures`` count since the candidate takes new objects, ``failed`` is the share of the
    last 100; they are null if nobody counts, since it has neither ``back_at`` nor a ``deadline``.
    """
    return {
        "name": route.name,
        "address": route.address,
        "proxy_plugin": route.foreign,
        "trouble": route.trouble,
        "instruments": list(route.instruments),
        "candidates": [
            {
                **{key: value for key, value in dataclasses.asdict(each.terms).items() if key != "route"},
                "backend": each.terms.backend,
                "state": state(each),
                "trouble": each.trouble,
                "drained": each.drained,
                "since": each.since,
                "configured": each.configured,
                "objects": each.objects,
                "chosen": each.chosen,
                "sent_home": each.sent_home,
                "calls": each.calls if each.terms.judged else None,
                "failures": each.failures if each.terms.judged else None,
                "failed": each.failed if each.terms.judged else None,
                "instruments": list(each.instruments),
            }
            for each in route.candidates
        ],
    }
