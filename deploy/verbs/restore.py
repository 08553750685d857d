"""``splitd restore ROUTE``: a candidate takes no new objects any more. With ``--forget``, its objects are dropped."""

from __future__ import annotations

import argparse
import contextlib
import sys

from client.routes_remote import RemoteRoutes, Stands
from client.shown import ask as asked
from client.shown import say, table
from deploy import place, routing
from deploy.failure import Failure
from deploy.place import Place
from services.kit import errors

HELP = (
    "end what splitd replace began: new objects go home at once, those of the candidate stay there; --forget drops them"
)
_SHOWN = 50
"""Objects that are listed before they are forgotten."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("route", metavar="ROUTE", help="as of splitd replace")
    parser.add_argument(
        "--name", default="", metavar="NAME", help="the candidate, if the route has several (default: all of them)"
    )
    parser.add_argument(
        "--forget",
        action="store_true",
        help=(
            "list the candidate's objects, ask, and drop their records, as if its store were lost; what is in the "
            "store itself stays there"
        ),
    )
    parser.add_argument("--yes", action="store_true", help="forget without asking")


def run(arguments: argparse.Namespace) -> int:
    if arguments.yes and not arguments.forget:
        raise Failure("--yes is for --forget", 2)
    here = place.find(arguments)

    async def restored() -> None:
        async with routing.connected(here) as routes:
            found = await routes.restore(arguments.route, arguments.name)
            for candidate in found:
                _tell(here, candidate)
            if arguments.forget:
                for candidate in found:
                    await _forget(routes, candidate, ask=not arguments.yes)

    routing.run(here, restored())
    return 0


def _tell(here: Place, candidate: Stands) -> None:
    terms = candidate.terms
    say(f"{terms.route}: {terms.name} takes no new objects any more")
    if candidate.objects:
        say(
            f"it has {routing.objects(candidate.objects)}, which stay there: {here.hint('routes')} shows it until they "
            "are removed"
        )


async def _forget(routes: RemoteRoutes, candidate: Stands, *, ask: bool) -> None:
    terms = candidate.terms
    try:
        total, some = await routes.objects(terms.route, terms.name, _SHOWN)
    except errors.NotFound:
        say(f"{terms.name} had nothing, and is gone")
        return
    if total:
        table(
            [
                ("NAMESPACE", "KIND", "NAME", "CONTAINERS"),
                *((each.namespace, each.kind, each.name, ", ".join(each.containers) or "-") for each in some),
            ]
        )
        if total > len(some):
            say(f"and {total - len(some):,} more")
        if ask and not _agreed(f"forget {routing.objects(total)} of {terms.name}? Nobody finds them any more"):
            raise Failure("nothing was forgotten")
    count = 0
    with contextlib.suppress(errors.NotFound):  # its last object went meanwhile, and so did it
        count = await routes.forget(terms.route, terms.name)
    say(f"forgot {routing.objects(count)} of {terms.name}")


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise Failure("nothing was forgotten: there is no terminal to ask at (--yes forgets without asking)", 2)
    return asked(f"{question} [y/N]").lower() in ("y", "yes")
