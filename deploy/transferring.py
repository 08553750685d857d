"""What ``splitd pull``, ``push`` and ``images`` share: the node's API as a client of a namespace, and a transfer that
is shown and can be interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from client import bars
from client import output as outputs
from client.images_remote import Images
from client.leases_remote import Leases, kept
from client.progress import Tally
from client.transfers_remote import Transfers
from deploy import place
from deploy.failure import Failure
from deploy.place import Place
from services.images.transfer import Credentials, Progress, Registry, Unpacking
from services.kit import errors, loops, rpc
from services.oci import platforms
from services.oci.platforms import Platform

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds to wait for the gateway of a node that is up."""

# ---------------------------------------------------------------------------------------------- arguments


def add_namespace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n",
        "--namespace",
        metavar="NAME",
        help="containerd's namespace (default: $CONTAINERD_NAMESPACE, else default)",
    )


def actions(parser: argparse.ArgumentParser, *, namespace: bool = True) -> Callable[..., argparse.ArgumentParser]:
    """A function that makes the actions of a verb, which are about one ``namespace`` or not. It takes a name, a help
    text and aliases, and returns the action's parser.
    """
    made = parser.add_subparsers(dest="action", metavar="ACTION")

    def action(name: str, help_: str, *aliases: str) -> argparse.ArgumentParser:
        # An argument that the parser above has too must not be reset to its default here.
        one = made.add_parser(
            name, aliases=aliases, help=help_, description=help_, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
        if namespace:
            add_namespace(one)
        place.add_arguments(one)
        return one

    return action


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help=("print a line of JSON for each change; the last has the outcome")
    )
    parser.add_argument("-q", "--quiet", action="store_true", default=False, help="print only errors")


def add_platforms(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--platform",
        action="append",
        default=[],
        metavar="OS/ARCH",
        help=f"choose a platform; may be repeated (default: {default})",
    )


def add_unpacking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-unpack",
        action="store_true",
        default=False,
        help="do not unpack the layers; a container needs them unpacked",
    )
    parser.add_argument(
        "--snapshotter", default="", metavar="NAME", help=("the snapshotter that unpacks (default: the node's)")
    )


def add_registry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--user", metavar="NAME[:PASSWORD]", help="the user for the registry; without a password, splitd asks for it"
    )
    parser.add_argument("--plain-http", action="store_true", help="the registry speaks http, not https")
    parser.add_argument(
        "--hosts-dir", metavar="DIR", help="the directory of HOST/hosts.toml files (default: as the node is configured)"
    )


def output(arguments: argparse.Namespace, title: str, *, to_stderr: bool = False) -> outputs.Output:
    """The output on which a transfer is shown."""
    if arguments.json and arguments.quiet:
        raise Failure("--json and --quiet contradict each other: choose one", 2)
    return outputs.chosen(sys.stderr if to_stderr else sys.stdout, title, as_json=arguments.json, quiet=arguments.quiet)


def chosen_platforms(arguments: argparse.Namespace) -> tuple[Platform, ...]:
    """The platforms of --platform. A Failure names one that is invalid."""
    try:
        return tuple(platforms.parse(text) for text in arguments.platform)
    except ValueError as error:
        raise Failure(f"--{error}", 2) from None


def wanted_platforms(arguments: argparse.Namespace) -> tuple[Platform, ...]:
    """The platforms of --platform and --all-platforms: none means all. This machine's platform if neither is given."""
    listed = chosen_platforms(arguments)
    if listed and arguments.all_platforms:
        raise Failure("--platform and --all-platforms contradict each other: choose one", 2)
    return listed or (() if arguments.all_platforms else (platforms.default(),))


def unpackings(arguments: argparse.Namespace, wanted: Sequence[Platform]) -> tuple[Unpacking, ...]:
    """What to unpack for the wanted platforms (none: all). Only platforms of this machine's operating system are
    included, since a node refuses a request for others only.
    """
    if arguments.no_unpack:
        if arguments.snapshotter:
            raise Failure("--no-unpack and --snapshotter contradict each other: choose one", 2)
        return ()
    here = platforms.default()
    return tuple(Unpacking(each, arguments.snapshotter) for each in wanted or (here,) if each.os == here.os)


def registry(arguments: argparse.Namespace, reference: str) -> Registry:
    """The registry as an end of a transfer. Asks for a password if only the user is known."""
    hosts = ""
    if arguments.hosts_dir is not None:
        hosts = os.path.abspath(arguments.hosts_dir)
        if not Path(hosts).is_dir():
            raise Failure(f"--hosts-dir {arguments.hosts_dir}: there is no such directory", 2)
    ask = None
    if arguments.user is not None:
        name, colon, password = arguments.user.partition(":")
        if not name:
            raise Failure("--user: say NAME or NAME:PASSWORD", 2)
        known = Credentials(name, password if colon else _asked(f"Password of {name} for {reference}: "))

        async def ask(_host: str, _challenges: Sequence[str]) -> Credentials:
            return known

    return Registry(reference, host_dir=hosts, default_scheme="http" if arguments.plain_http else "", credentials=ask)


def _asked(question: str) -> str:
    """Read a line from the terminal, which does not show it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise Failure("--user: there is no terminal to ask for the password at: say NAME:PASSWORD", 2) from None
    try:
        return getpass.getpass(question)
    except EOFError:
        raise Failure("--user: no password was given", 2) from None


# ---------------------------------------------------------------------------------------------- the node


class Client:
    """The node's API in one namespace."""

    def __init__(self, channel: rpc.Channel, namespace: str) -> None:
        self._channel = channel
        self._headers: Mapping[str, str | bytes] = {rpc.NAMESPACE: namespace}
        self.images = Images(channel, self._headers)
        self.leases = Leases(channel, self._headers)
        self.transfers = Transfers(channel, self._headers)

    @contextlib.asynccontextmanager
    async def resumable(self, reference: str) -> AsyncIterator[Transfers]:
        """Transfers that pull ``reference``. If the block fails, what they fetched is kept for a day."""
        async with kept(self._channel, self._headers, reference) as headers:
            yield Transfers(self._channel, headers)


@contextlib.asynccontextmanager
async def connected(here: Place, namespace: str | None) -> AsyncIterator[Client]:
    """The node at ``here`` in a namespace, while the block lasts; NotUp if there is none."""
    async with channel(here) as found:
        yield Client(found, chosen_namespace(namespace))


def chosen_namespace(namespace: str | None) -> str:
    """Containerd's namespace: the one that -n names, else that of the environment, else ``default``."""
    return namespace or os.environ.get("CONTAINERD_NAMESPACE") or "default"


@contextlib.asynccontextmanager
async def channel(here: Place, patience: float = PATIENCE) -> AsyncIterator[rpc.Channel]:
    """The API of the node at ``here``, while the block lasts. NotUp if there is none; Failure if it has not answered
    after ``patience`` seconds.
    """
    async with rpc.Channel(here.socket, "gateway") as channel:
        if not _listening(here):
            from deploy import supervision

            if not supervision.is_up(here):
                raise supervision.not_up(here)
        if not await channel.wait_connected(patience):
            raise Failure(f"the gateway at {here.socket} does not answer (see {here.hint('status')})")
        yield channel


def _listening(here: Place) -> bool:
    """Whether a process listens at the node's socket. If its queue is full, as of a stopped process, this does not
    wait.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(here.socket))
        except BlockingIOError:
            return True
        except PermissionError:
            raise Failure(f"{here.socket}: permission denied: run this as root (sudo)") from None
        except OSError:
            return False
    return True


_AWAY = re.compile(r"\bservice [\w.-]+ (is not reachable|has been unreachable|has been silent|went away)")
"""Matches errors about a process of the node that is away, for example during a restart. No error about a registry
matches.
"""
_SUFFIX = re.compile(r": unavailable(?=\)|$)")
"""The name of the error's class, which each process appends."""


def run(work: Coroutine[Any, Any, T], resumed: str = "") -> T:
    """Run ``work``. If Ctrl-C, SIGTERM or SIGHUP cancels it, a Failure says so, and adds ``resumed``: what is kept of
    the work. The same holds if a service of the node goes away meanwhile.
    """

    async def guarded() -> T:
        task, loop = loops.task("a transfer", work), asyncio.get_running_loop()
        caught: list[signal.Signals] = []

        def stop(number: signal.Signals) -> None:
            caught.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        try:
            return await task
        except asyncio.CancelledError:
            if not caught:
                raise
            raise Failure(f"cancelled{resumed and '; ' + resumed}", 128 + caught[0]) from None
        except errors.NodeError as error:
            words, trace = str(error), trace_of(error)
            away = isinstance(error, errors.Unavailable) and resumed and _AWAY.search(words)
            if not away and not trace:
                raise
            words = f"{_SUFFIX.sub('', words)}; {resumed}" if away else words
            raise Failure(f"{words} (trace {trace})" if trace else words) from None

    return asyncio.run(guarded())


# ---------------------------------------------------------------------------------------------- showing a transfer


async def shown(
    output: outputs.Output,
    tally: Tally,
    subject: Mapping[str, Any],
    work: Callable[[Callable[[Progress], None]], Awaitable[Mapping[str, Any]]],
) -> Mapping[str, Any]:
    """Run ``work`` and show it on ``output``. ``work`` is given a function to report events to. The result is its
    answer, completed by ``subject`` and the figures.
    """

    def report(event: Progress) -> None:
        if (part := tally.take(event, time.monotonic())) is not None:
            output.changed(part)
        if tally.wait is not None and not event.name:
            output.waits(tally.wait)

    try:
        async with output.running(tally):
            found = await work(report)
            ended = time.monotonic()
            for part in tally.finish(ended):
                output.changed(part)
    except asyncio.CancelledError:
        output.ended({"outcome": "cancelled", **subject})
        raise
    except (errors.NodeError, Failure, OSError) as error:
        trace = trace_of(error)
        output.ended({"outcome": "failed", **subject, "error": str(error), **({"trace": trace} if trace else {})})
        raise
    seconds = max(ended - tally.started, 0.001)
    outcome = {
        "outcome": "done",
        **subject,
        **found,
        "bytes": tally.moved,
        "seconds": round(seconds, 3),
        "rate": round(tally.moved / seconds, 1),
    }
    output.ended(outcome)
    return outcome


def trace_of(error: Exception) -> str:
    """The id of the trace of a transfer that failed; "" if it has none."""
    trace = dict(error.trailers).get(rpc.TRACE, "") if isinstance(error, errors.NodeError) else ""
    return trace if isinstance(trace, str) and re.fullmatch("[0-9a-f]{32}", trace) else ""


def with_digest(reference: str, outcome: Mapping[str, Any]) -> str:
    """``reference`` with its own digest, or else with the digest of the outcome."""
    return reference if "@" in reference else f"{reference}@{outcome['digest']}"


def figures(outcome: Mapping[str, Any]) -> str:
    """``120.3 MiB in 4.2 s (28.6 MiB/s)``"""
    rate = f" ({bars.size(outcome['rate'])}/s)" if outcome["bytes"] else ""
    return f"{bars.size(outcome['bytes'])} in {bars.duration(outcome['seconds'])}{rate}"


def layers(outcome: Mapping[str, Any]) -> str:
    """``5 layers, 2 of them there already``"""
    count, existing = outcome["layers"], outcome["existing"]
    said = f"{count} layer{'' if count == 1 else 's'}"
    if not existing:
        return said
    return (
        f"{said}, {'all' if existing == count and count > 1 else existing} of them there already"
        if count > 1
        else f"{said}, there already"
    )
