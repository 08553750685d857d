"""``splitd fleet nodes``: the nodes of the fleet."""

from __future__ import annotations

import argparse
import json
import time

from client.fleet_remote import FleetView, Member, Standing
from client.shown import complain, say, table
from deploy.fleet import asking
from deploy.place import Place
from deploy.verbs.images import age, timestamp

HELP = "print the nodes of the fleet, and where each gives blobs to the others (the default action)"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    standing, nodes = asking.run(_found(asking.here(arguments)))
    if arguments.json:
        print(
            json.dumps(
                {
                    "node": standing.node,
                    "troubles": standing.troubles,
                    "nodes": [
                        {
                            "name": each.name,
                            "address": each.address or None,
                            "since": timestamp(each.since),
                            "version": each.version,
                        }
                        for each in nodes
                    ],
                },
                indent=2,
            )
        )
        return 0
    now = time.time_ns()
    table(
        [
            ("NODE", "ADDRESS", "SINCE", "VERSION"),
            *(
                (
                    f"{each.name} (this one)" if each.name == standing.node else each.name,
                    each.address or "-",
                    age(now - each.since),
                    each.version or "-",
                )
                for each in nodes
            ),
        ]
    )
    if not nodes:
        say("no node is in the fleet now")
    complain(*(f"this node: {trouble}" for trouble in standing.troubles))
    return 0


async def _found(node: Place) -> tuple[Standing, list[Member]]:
    async with asking.connected(node) as channel:
        view = FleetView(channel, asking.PATIENCE)
        return await view.status(), [each async for each in view.nodes()]
