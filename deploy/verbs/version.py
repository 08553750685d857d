"""``splitd version``: prints the version of this command, and that of the node."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json

from client.shown import say
from client.version_remote import Version, version_of
from deploy import place, supervision, transferring
from deploy.place import Place
from services.kit import version

HELP = "print the version of this command, and of the node if it is up; containerd's version is before the plus sign"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON; node is null if none is up")


def run(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)
    command = Version(version.VERSION, version.revision())
    node = asyncio.run(_of_node(here)) if supervision.is_up(here) else None
    if arguments.json:
        print(
            json.dumps(
                {"command": dataclasses.asdict(command), "node": dataclasses.asdict(node) if node else None}, indent=2
            )
        )
        return 0
    say(f"command  {command}", f"node     {node or f'none is up at {here.state}'}")
    return 0


async def _of_node(here: Place) -> Version:
    async with transferring.channel(here) as channel:
        return await version_of(channel)
