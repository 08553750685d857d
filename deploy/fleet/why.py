"""``splitd fleet why DIGEST``: which nodes have a blob, and which one fetches it from a registry."""

from __future__ import annotations

import argparse
import json

from client import bars
from client.fleet_remote import FleetView, Holder
from client.shown import say, table
from deploy.failure import Failure
from deploy.fleet import asking
from deploy.place import Place
from services.oci.digests import Digest

HELP = "print which nodes have a blob or a part of it, and which one fetches it from a registry; exit code 1: none"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "digest", metavar="DIGEST", help="such as sha256:..., of a layer, a configuration or a manifest"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    try:
        digest = Digest.parse(arguments.digest)
    except ValueError as error:
        raise Failure(f"{arguments.digest}: {error}", 2) from None
    holders, fetching = asking.run(_found(asking.here(arguments), digest))
    if arguments.json:
        print(
            json.dumps(
                {
                    "digest": str(digest),
                    "fetching": fetching or None,
                    "nodes": [
                        {"name": each.node, "address": each.address or None, "size": each.size, "have": each.have}
                        for each in holders
                    ],
                },
                indent=2,
            )
        )
    elif holders:
        table([("NODE", "HAS", "OF", "ADDRESS"), *(_row(each, fetching) for each in holders)])
    else:
        say(f"{fetching} fetches it from a registry" if fetching else f"no node of the fleet says that it has {digest}")
    return 0 if holders or fetching else 1


def _row(holder: Holder, fetching: str) -> tuple[str, ...]:
    return (
        f"{holder.node} (from a registry)" if holder.node == fetching else holder.node,
        "all" if holder.have >= holder.size else bars.size(holder.have),
        bars.size(holder.size),
        holder.address or "-",
    )


async def _found(node: Place, digest: Digest) -> tuple[list[Holder], str]:
    async with asking.connected(node) as channel:
        return await FleetView(channel, asking.PATIENCE).why(digest)
