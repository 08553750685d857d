"""The private APIs by which operators change a running node. They are served on its internal socket, for root alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from deploy import supervision
from deploy.failure import Failure
from deploy.place import Place
from services.kit import errors
from services.kit.rpc import Channel

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds to wait for the gateway of a node that is up."""


def ask(here: Place, work: Callable[[Channel], Awaitable[T]]) -> T:
    """The result of ``work`` with a channel to the gateway's internal socket. NotUp if the node is down; Failure for
    what the gateway answers.
    """

    async def asked() -> T:
        async with Channel(here.state / "internal.sock", "gateway") as channel:
            if not supervision.is_up(here):
                raise supervision.not_up(here)
            await channel.reached(PATIENCE)
            return await work(channel)

    try:
        return asyncio.run(asked())
    except PermissionError as error:
        raise Failure(f"{error.filename}: {error.strerror}") from None
    except errors.Unavailable as error:
        raise Failure(f"{error} (see {here.hint('status')})", 3) from None
    except errors.NodeError as error:
        raise Failure(str(error)) from None
