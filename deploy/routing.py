"""What the verbs about routes share: the way to the gateway, what operators write, and how candidates are told."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from client.routes_remote import RemoteRoutes
from deploy import supervision
from deploy.failure import Failure
from deploy.place import Place
from gateway.candidates import ALL, Terms
from services.kit import errors, rpc, settings

T = TypeVar("T")
_PATIENCE = 5.0
"""Seconds for the gateway to be reached."""


@contextlib.asynccontextmanager
async def internal(here: Place) -> AsyncIterator[rpc.Channel]:
    """The internal socket of a node that is up, which has what only operators are offered."""
    try:
        async with rpc.Channel(here.state / "internal.sock", "gateway") as channel:
            await channel.reached(_PATIENCE)
            yield channel
    except errors.Unimplemented:
        raise Failure(f"the gateway runs an older release: {here.hint('restart gateway')}") from None


@contextlib.asynccontextmanager
async def connected(here: Place) -> AsyncIterator[RemoteRoutes]:
    """The routes of a node that is up."""
    async with internal(here) as channel:
        yield RemoteRoutes(channel)


def run(here: Place, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, whose errors are the node's words; exit code 3 if no node is up."""
    try:
        return asyncio.run(work)
    except (errors.InvalidArgument, errors.NotFound, errors.FailedPrecondition, errors.ResourceExhausted) as error:
        raise Failure(words(error)) from None
    except errors.Unavailable as error:
        raise (
            Failure(f"{words(error)} (see {here.hint('status')})", 3)
            if supervision.is_up(here)
            else supervision.not_up(here)
        ) from None


def words(error: errors.NodeError) -> str:
    """Its words, without those that all errors of its class have."""
    return str(error).removesuffix(f": {error.suffix}")


def percent(text: str) -> float:
    """``10%`` or ``10``; for argparse."""
    try:
        found = float(text.strip().removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage such as 10%") from None
    if not 0 < found <= ALL:
        raise argparse.ArgumentTypeError(f"{text!r}: it is more than 0% and at most 100%")
    return found


def duration(text: str) -> float:
    """``10m`` in seconds; for argparse. 0 is refused: the node would take it for no limit at all."""
    try:
        found = settings.parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: it is longer than 0")
    return found


def selected(text: str) -> str:
    """The namespace of ``namespace=x``; for argparse."""
    key, equals, value = text.partition("=")
    if key != "namespace" or not equals or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no selector: namespace=NAME is one")
    return value


def takes(terms: Terms) -> str:
    """Which new objects it takes, in words."""
    share = "all" if terms.share == ALL else f"{terms.share:g}%"
    of = f" of namespace {' and '.join(terms.namespaces)}" if terms.namespaces else ""
    until = f" until {moment(terms.until)}" if terms.until else ""
    back = f", back at {terms.back_at:g}% failures" if terms.back_at else ""
    return f"{share}{of}{until}{back}"


def moment(seconds: float) -> str:
    """A moment of today by its time, another with its date."""
    when, now = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M:%S" if when[:3] == now[:3] else "%Y-%m-%d %H:%M:%S", when)


def objects(count: int) -> str:
    """``3 objects``"""
    return "an unknown number of objects" if count < 0 else f"{count:,} object{'' if count == 1 else 's'}"
