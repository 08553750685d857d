"""``splitd logs SERVICE``: prints what a service logged; "supervisord" is supervisord's own log. Without a service it
prints the logs of all services, and with -f follows all of them together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from client.shown import check_is_read, page, say
from deploy import logfiles, place, supervision
from deploy.failure import Failure, mistyped
from deploy.place import Place
from deploy.processes import ALL_NAMES, optional

HELP = "print the last lines that a service logged; without a service, those of each; with -f, follow the logs"
LOGS = (*ALL_NAMES, "supervisord")
PAUSE = 0.2
"""Seconds between two looks for new lines."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", nargs="?", metavar="SERVICE", help=", ".join(LOGS))
    parser.add_argument("-n", "--lines", type=int, default=100, metavar="N", help="how many lines (default 100)")
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help=("continue with new lines as they are logged; without a service, those of all services together"),
    )


def run(arguments: argparse.Namespace) -> int:
    name = arguments.service
    if name is not None and name not in LOGS:
        raise Failure(mistyped(name, list(LOGS), "service"), 2)
    if arguments.lines < 0:
        raise Failure(f"--lines {arguments.lines}: say how many lines, 0 or more", 2)
    here = place.find(arguments)
    if place.given_root(arguments) is None and (owner := supervision.owner(here.root)) not in (None, here.state):
        raise Failure(f"no node was started at {here.state}: the logs below {here.root} are of the node at {owner}")
    wanted = [each for each in LOGS if not optional(each) or here.log(each).exists()] if name is None else [name]
    if not any(here.log(each).exists() for each in wanted):
        raise Failure(f"there is no log at {here.log(name or 'supervisord')}: no node was started with this root")
    if arguments.follow:
        _follow(here, wanted, arguments.lines)
    for each in wanted:
        if name is None:
            say(f"==> {each} <==")
        _show(logfiles.last(here.log(each), arguments.lines))
    return 0


def _follow(here: Place, names: Sequence[str], lines: int) -> None:
    """Print the last lines, and then what is appended, until interrupted. Lines of several logs come in the order of
    time, each with its service before it.
    """
    width = max(map(len, names))
    followers = [(name, logfiles.Follower(here.log(name))) for name in names]
    earlier = list(
        logfiles.in_order(
            (name, logfiles.last(here.log(name), lines, follower.position)) for name, follower in followers
        )
    )
    found = earlier[len(earlier) - min(lines, len(earlier)) :]
    while True:
        _show([line if len(names) == 1 else f"{name.ljust(width)} | {line}" for name, line in found])
        while not (found := list(logfiles.in_order((name, list(follower.lines())) for name, follower in followers))):
            check_is_read()
            time.sleep(PAUSE)


def _show(lines: Sequence[str]) -> None:
    page("".join(line + "\n" for line in lines))
