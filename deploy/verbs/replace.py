"""``splitd replace ROUTE --address ADDRESS``: another service takes new objects of a route, all of them or a share."""

from __future__ import annotations

import argparse
import time

from client.shown import say
from deploy import place, routing
from gateway.candidates import ALL, Terms, named_by

HELP = (
    "have another service take new objects of a route (content, images, tasks, diff, metadata, snapshots.NAME, "
    "sandbox.NAME); what it makes stays with it"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("route", metavar="ROUTE", help="whose new objects it takes (splitd routes lists them)")
    parser.add_argument(
        "--address", required=True, metavar="ADDRESS", help="where it is: /path of a unix socket, or HOST:PORT"
    )
    parser.add_argument(
        "--name",
        default="",
        metavar="NAME",
        help=(
            "its name, by which its objects are known for as long as they live (default: made of the address); the "
            "same name with another address is the same store, which has moved"
        ),
    )
    parser.add_argument(
        "--for",
        dest="namespaces",
        action="append",
        type=routing.selected,
        default=[],
        metavar="namespace=NAME",
        help="only new objects of this namespace; may be repeated",
    )
    parser.add_argument(
        "--share",
        type=routing.percent,
        default=ALL,
        metavar="PERCENT",
        help="only so many of them, such as 10%%; of snapshots those without a parent count, since a child lives where "
        "its parent lives",
    )
    parser.add_argument(
        "--until", type=routing.duration, default=0.0, metavar="DURATION", help="it ends by itself, such as after 10m"
    )
    parser.add_argument(
        "--back-at",
        type=routing.percent,
        default=0.0,
        metavar="PERCENT",
        help=(
            "it ends by itself once this share of its last 100 calls, at least 20, has failed; NOT_FOUND, "
            "ALREADY_EXISTS and what clients gave up do not count. A call that it never answers fails only when a "
            "limit is over: give --deadline too"
        ),
    )
    parser.add_argument(
        "--deadline",
        type=routing.duration,
        default=0.0,
        metavar="DURATION",
        help="a unary call to it that takes longer fails (default: as that to the service whose place it takes)",
    )
    parser.add_argument(
        "--capability",
        dest="capabilities",
        action="append",
        default=[],
        metavar="NAME",
        help="a feature of a snapshotter that clients may use there, such as rebase; may be repeated",
    )
    routing.add_tls(parser)


def run(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)
    terms = Terms(
        route=arguments.route,
        name=arguments.name or named_by(arguments.address),
        address=arguments.address,
        namespaces=tuple(arguments.namespaces),
        share=arguments.share,
        until=time.time() + arguments.until if arguments.until else 0.0,
        back_at=arguments.back_at,
        deadline=arguments.deadline,
        capabilities=tuple(arguments.capabilities),
        **routing.tls(arguments),
    )

    async def replaced() -> None:
        async with routing.connected(here) as routes:
            candidate, moved = await routes.replace(terms)
        found = candidate.terms
        say(f"{found.route}: {found.name} at {found.address} takes new objects: {routing.takes(found)}")
        if moved:
            say(f"it was at {moved} before: its {routing.objects(candidate.objects)} must be in the same store")
        if candidate.trouble:
            say(f"it is down ({candidate.trouble}): new objects go home until it is there")
        say(f"to go back: {here.hint(f'restore {found.route}')}")

    routing.run(here, replaced())
    return 0
