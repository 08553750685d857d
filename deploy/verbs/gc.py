"""``splitd gc``: whether the collector holds things back, and the operator's word that it need not."""

from __future__ import annotations

import argparse
import asyncio
import time

from client.held_remote import RemoteHeld
from client.shown import say
from deploy import place
from deploy.failure import Failure
from deploy.place import Place
from services.kit import errors, rpc

HELP = "say whether the collector holds back what the metadata store does not know, as after a backup was put back or its log was damaged; --release: collect it"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--release", action="store_true", help="what the metadata store does not know may go: collect it now")


def run(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)
    try:
        asyncio.run(_run(here, release=arguments.release))
    except errors.Unavailable as error:
        raise Failure(f"metadata does not answer at {here.state}: {error}", 3) from None
    return 0


async def _run(here: Place, *, release: bool) -> None:
    async with rpc.Channel(here.state / "metadata.sock", "metadata") as channel:
        remote = RemoteHeld(channel)
        reason, since = await remote.held()
        if not reason:
            say("nothing is held back: what nobody needs is collected")
            return
        say(f"held back since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}: {reason}")
        if not release:
            say(f"this stays so until {here.hint('gc --release')}")
            return
        await remote.release()
        say("released: it is being collected")
