"""``splitd fleet images``: the images of the fleet's nodes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from client.shown import say, table
from deploy.fleet import asking
from deploy.place import Place
from deploy.verbs.images import timestamp
from services.fleet.remote import RemoteOverview
from services.fleet.store import Image

HELP = "print the images of the fleet's nodes in shared namespaces, and which nodes have each"
NAMES = 5
"""Nodes of an image that are named in the table."""


def arguments(parser: argparse.ArgumentParser) -> None:
    asking.add_selection(parser)


def run(arguments: argparse.Namespace) -> int:
    images = asking.run(_found(asking.here(arguments), arguments.node, arguments.namespace))
    groups: dict[tuple[str, str, str], list[Image]] = {}
    for image in sorted(images, key=lambda image: (image.namespace, image.name, image.target.digest, image.node)):
        groups.setdefault((image.namespace, image.name, image.target.digest), []).append(image)
    if arguments.json:
        print(json.dumps([_described(group) for group in groups.values()], indent=2))
        return 0
    rows = [("NAMESPACE", "NAME", "DIGEST", "NODES")]
    for (namespace, name, digest), group in groups.items():
        rows.append((namespace, name, digest.partition(":")[2][:12], _named([image.node for image in group])))
    table(rows)
    if not groups:
        say("no node of the fleet tells of an image" if not arguments.node else f"{arguments.node} tells of no image")
    return 0


def _described(group: Sequence[Image]) -> dict[str, object]:
    """An image as JSON; ``size`` is that of its manifest or index, in bytes. ``updated`` is by the node's clock."""
    first = group[0]
    return {
        "namespace": first.namespace,
        "name": first.name,
        "digest": first.target.digest,
        "size": first.target.size,
        "nodes": [{"name": image.node, "updated": timestamp(image.updated)} for image in group],
    }


def _named(nodes: Sequence[str]) -> str:
    more = len(nodes) - NAMES
    return f"{len(nodes)}: {', '.join(nodes[:NAMES])}{f' and {more} more' if more > 0 else ''}"


async def _found(node: Place, name: str, namespace: str) -> list[Image]:
    async with asking.connected(node) as channel:
        return [
            image
            async for page in RemoteOverview(channel).images()
            for image in page
            if (not name or image.node == name) and (not namespace or image.namespace == namespace)
        ]
