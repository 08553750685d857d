"""``splitd restart SERVICE``: stop a service, start it again, wait until it is healthy. Containers do not notice.

With ``--all`` all of them, one after the other, which is how a node goes over to another release.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from client.shown import complain, say
from deploy import configuration, health, place, revisions, running, supervision
from deploy.failure import Failure
from deploy.place import Place
from deploy.processes import NAMES, named
from deploy.verbs import up

HELP = "stop services and start them again, one after the other; containers do not notice"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", nargs="*", metavar="SERVICE", help=", ".join(NAMES))
    parser.add_argument(
        "--all",
        action="store_true",
        help="all that run, one after the other: what a node goes over to another release by",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for each one's health (default 30)",
    )


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.service) == arguments.all:
        raise Failure(f"say which service ({', '.join(NAMES)}), or --all", 2)
    up.known(arguments.service)
    here = place.find(arguments)
    supervisor = supervision.reached(here)
    _refuse_another_configuration(here, place.given_config(arguments))
    for name in _running(supervisor) if arguments.all else arguments.service:
        supervisor.stop(named(name))
        supervisor.start(named(name))
        (after,) = health.wait(here, arguments.timeout, {name})
        if not after.healthy:
            complain(f"{name} is not healthy after its restart: {after.trouble}")
            say(*up.last_words(here, name), file=sys.stderr)
            complain(f"see {here.hint(f'logs {name}')}")
            return 1
        say(f"restarted {name}: pid {after.status.pid}")
    if arguments.all:
        say(*revisions.differences(here, health.of_node(here), supervisor.code()))
    return 0


def _running(supervisor: supervision.Supervisor) -> list[str]:
    """In the order of their starts. What was stopped on purpose stays so."""
    found = supervisor.processes()
    for name, status in found.items():
        if status.state == "STOPPED":
            say(f"{name} is stopped, and stays so")
    return [name for name, status in found.items() if status.state not in ("STOPPED", "ABSENT")]


def _refuse_another_configuration(here: Place, given: Path | None) -> None:
    """A service is started again with the file that its node was started with, if that is good; what of it is not
    read is said.
    """
    if given is not None and given != here.config:
        raise Failure(
            f"the node at {here.state} runs with configuration {here.config or 'defaults'}, not {given}: "
            f"{here.hint('down')}, then {here.hint(f'up --config {given}')}"
        )
    found = configuration.check(here.config)
    if found.errors:
        raise Failure(f"nothing is restarted: {found.errors[0]}", more=found.errors[1:])
    for line in running.of_the_node(here):
        complain(f"warning: {line}")
