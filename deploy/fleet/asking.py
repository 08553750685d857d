"""The process ``fleet`` of a node, asked by a command."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from deploy import place, running, supervision
from deploy.failure import Failure
from deploy.place import Place
from deploy.processes import named
from services.kit import errors, rpc

T = TypeVar("T")
FLEET = named("fleet")
PATIENCE = 10.0
"""Seconds for the process to be there, and for an answer of it, which etcd may have to give."""


def here(arguments: argparse.Namespace) -> Place:
    """The node that the arguments mean; a Failure says what to do if it is not up, or in no fleet."""
    found = place.find(arguments)
    if not supervision.is_up(found):
        raise supervision.not_up(found)
    if FLEET not in running.processes(found):
        raise Failure(
            f"the node at {found.state} is in no fleet: write [fleet.etcd] endpoints into its configuration "
            f"({found.config or 'it has none'}), then {found.hint('up')}; docs/fleet.md says more"
        )
    return found


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options of a list of what nodes have."""
    parser.add_argument("--node", default="", metavar="NODE", help="only what this node has")
    parser.add_argument("-n", "--namespace", default="", metavar="NAME", help="only what is in this namespace")
    parser.add_argument("--json", action="store_true", help="print JSON")


@contextlib.asynccontextmanager
async def connected(node: Place) -> AsyncIterator[rpc.Channel]:
    """A channel to the process."""
    async with rpc.Channel(node.state / FLEET.sockets[0], FLEET.name) as channel:
        try:
            await channel.reached(PATIENCE)
        except errors.NodeError as error:
            raise Failure(f"{_words(error)}: see {node.hint('logs fleet')}") from None
        yield channel


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and let a Failure say what went wrong."""
    try:
        return asyncio.run(work)
    except errors.NodeError as error:
        raise Failure(_words(error)) from None


def _words(error: errors.NodeError) -> str:
    return str(error).removesuffix(f": {error.suffix}")
