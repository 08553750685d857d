"""What the verbs about routes share: the way to the gateway, what operators write, and how candidates are told."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from client.routes_remote import RemoteRoutes
from deploy import supervision
from deploy.failure import Failure
from deploy.place import Place
from gateway.candidates import ALL, Terms
from services.kit import errors, rpc, settings

T = TypeVar("T")


class Tls(TypedDict):
    """The fields of a candidate's address that are about TLS."""

    tls: bool
    ca: str
    cert: str
    key: str
    server_name: str


_PATIENCE = 5.0
"""Seconds for the gateway to be reached."""


@contextlib.asynccontextmanager
async def internal(here: Place) -> AsyncIterator[rpc.Channel]:
    """The internal socket of a node that is up, which has what only operators are offered."""
    socket = here.state / "internal.sock"
    if not os.path.exists(socket) and not supervision.is_up(here):
        raise supervision.not_up(here)  # nobody is about to serve it
    try:
        async with rpc.Channel(socket, "gateway") as channel:
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
    except (
        errors.AlreadyExists,
        errors.FailedPrecondition,
        errors.InvalidArgument,
        errors.NotFound,
        errors.ResourceExhausted,
    ) as error:
        raise Failure(words(error)) from None
    except errors.Unavailable as error:
        raise (
            Failure(f"{words(error)} (see {here.hint('status')})", 3)
            if supervision.is_up(here)
            else supervision.not_up(here)
        ) from None


def add_tls(parser: argparse.ArgumentParser) -> None:
    """The options by which another service is reached by TLS."""
    tls = parser.add_argument_group("TLS, for HOST:PORT")
    tls.add_argument("--tls", action="store_true", help="connect by TLS, as each of the next options does")
    tls.add_argument("--ca", default="", metavar="FILE", help="authorities that may have signed its certificate (PEM)")
    tls.add_argument("--cert", default="", metavar="FILE", help="the certificate that the node shows it (PEM)")
    tls.add_argument("--key", default="", metavar="FILE", help="the key of that certificate (PEM)")
    tls.add_argument("--server-name", default="", metavar="NAME", help="the name in its certificate")


def tls(arguments: argparse.Namespace) -> Tls:
    """What :func:`add_tls` has found, with absolute paths: the gateway has another directory."""

    def absolute(file: str) -> str:
        return str(Path(file).absolute()) if file else ""

    return {
        "tls": arguments.tls,
        "ca": absolute(arguments.ca),
        "cert": absolute(arguments.cert),
        "key": absolute(arguments.key),
        "server_name": arguments.server_name,
    }


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
