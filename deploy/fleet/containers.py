"""``splitd fleet containers``: the containers of the fleet's nodes."""

from __future__ import annotations

import argparse
import json
import time

from client.shown import say, table
from deploy.fleet import asking
from deploy.place import Place
from deploy.verbs.images import age, timestamp
from services.fleet.remote import RemoteOverview
from services.fleet.store import Container

HELP = "print the containers of the fleet's nodes in shared namespaces"


def arguments(parser: argparse.ArgumentParser) -> None:
    asking.add_selection(parser)


def run(arguments: argparse.Namespace) -> int:
    found = asking.run(_found(asking.here(arguments), arguments.node, arguments.namespace))
    found.sort(key=lambda each: (each.node, each.namespace, each.id))
    if arguments.json:
        print(
            json.dumps(
                [
                    {
                        "node": each.node,
                        "namespace": each.namespace,
                        "container": each.id,
                        "image": each.image or None,
                        "created": timestamp(each.created),
                    }
                    for each in found
                ],
                indent=2,
            )
        )
        return 0
    now = time.time_ns()
    rows = [("NODE", "NAMESPACE", "CONTAINER", "IMAGE", "CREATED")]
    rows += [(each.node, each.namespace, each.id, each.image or "-", age(now - each.created)) for each in found]
    table(rows)
    if not found:
        say("no node of the fleet tells of a container" if not arguments.node else f"{arguments.node} tells of none")
    return 0


async def _found(node: Place, name: str, namespace: str) -> list[Container]:
    async with asking.connected(node) as channel:
        return [
            each
            async for page in RemoteOverview(channel).containers()
            for each in page
            if (not name or each.node == name) and (not namespace or each.namespace == namespace)
        ]
