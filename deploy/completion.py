"""TAB completion of the splitd command.

At each TAB the shell's script (``splitd completion bash``) starts the command with environment variables of
argcomplete. The command's parser completes verbs and options, and the node completes names of images. If an answer
takes too long, or fails, nothing is completed and nothing is printed.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Collection
from typing import Any

from argcomplete import autocomplete
from argcomplete.completers import DirectoriesCompleter, FilesCompleter
from argcomplete.shell_integration import shellcode

from client.fleet_remote import FleetView
from deploy import place, routing, traces, transferring
from deploy.failure import Failure
from deploy.processes import ALL_NAMES
from deploy.verbs import VERBS
from services.kit import errors, rpc
from services.traces.store import Query

SHELLS = ("bash", "zsh", "fish")
PATIENCE = 1.0
"""Seconds that the node has to answer; a user does not wait longer for a TAB."""


def script(shell: str) -> str:
    """The script that a shell reads to complete ``splitd``."""
    return shellcode(["splitd"], shell=shell)


def complete(top: argparse.ArgumentParser) -> None:
    """Answer the shell, and exit."""
    _teach(top)
    autocomplete(top, always_complete_options="long")


def _teach(parser: argparse.ArgumentParser) -> None:
    """Give each argument its completer, chosen by the argument's metavar."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                _teach(child)
        elif action.metavar in COMPLETERS and action.nargs != 0:
            action.completer = COMPLETERS[action.metavar]  # type: ignore[attr-defined]


def _images(parsed_args: argparse.Namespace, **_: object) -> Collection[str]:
    async def names() -> list[str]:
        async with (
            asyncio.timeout(PATIENCE),
            transferring.connected(place.find(parsed_args), parsed_args.namespace) as client,
        ):
            return await client.images.names()

    return _quietly(names)


def _leases(parsed_args: argparse.Namespace, **_: object) -> Collection[str]:
    async def names() -> list[str]:
        async with (
            asyncio.timeout(PATIENCE),
            transferring.connected(place.find(parsed_args), parsed_args.namespace) as client,
        ):
            return [lease.lease for lease in await client.leases.list()]

    return _quietly(names)


def _traces(parsed_args: argparse.Namespace, **_: object) -> Collection[str]:
    async def names() -> list[str]:
        async with asyncio.timeout(PATIENCE), traces.of_node(place.find(parsed_args)) as node:
            return [trace.id for trace in await node.traces(Query())]

    return _quietly(names)


def _routes(parsed_args: argparse.Namespace, **_: object) -> Collection[str]:
    async def names() -> list[str]:
        async with asyncio.timeout(PATIENCE), routing.connected(place.find(parsed_args)) as routes:
            return [route.name for route in await routes.all()]

    return _quietly(names)


def _nodes(parsed_args: argparse.Namespace, **_: object) -> Collection[str]:
    async def names() -> list[str]:
        async with (
            asyncio.timeout(PATIENCE),
            rpc.Channel(place.find(parsed_args).state / "fleet.sock", "fleet") as channel,
        ):
            return [node.name async for node in FleetView(channel, PATIENCE).nodes()]

    return _quietly(names)


def _quietly(names: Callable[[], Any]) -> Collection[str]:
    try:
        return list(asyncio.run(names()))
    except (Failure, errors.NodeError, OSError):  # a node that is not up completes nothing
        return []


COMPLETERS: dict[Any, Callable[..., Any]] = {
    "SERVICE": lambda **_: (*ALL_NAMES, "supervisord"),
    "SHELL": lambda **_: SHELLS,
    "VERB": lambda **_: VERBS,
    "REF": _images,
    "SRC": _images,
    "LEASE": _leases,
    "TRACE": _traces,
    "ROUTE": _routes,
    "NODE": _nodes,
    "FILE": FilesCompleter(),
    "DIR": DirectoriesCompleter(),
}
