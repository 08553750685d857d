"""``splitd restart SERVICE``: stops a service, starts it again, and waits until it is healthy. Containers do not
notice.

``--all`` does this for all services, one after the other. This is how a node changes to another release.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from client.shown import complain, say
from deploy import configuration, health, place, reconcile, revisions, running, supervision
from deploy.failure import Failure
from deploy.place import Place
from deploy.processes import ALL_NAMES, named
from deploy.verbs import up

HELP = "stop services and start them again, one after the other; containers do not notice"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", nargs="*", metavar="SERVICE", help=", ".join(ALL_NAMES))
    parser.add_argument(
        "--all",
        action="store_true",
        help="restart all services that run, one after the other; this changes a node to another release",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait until each is healthy (default 30)",
    )


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.service) == arguments.all:
        raise Failure(f"say which service ({', '.join(ALL_NAMES)}), or --all", 2)
    up.known(arguments.service)
    here = place.find(arguments)
    supervisor = supervision.reached(here)
    _refuse_another_configuration(here, place.given_config(arguments))
    say(*reconcile.optional(here, supervisor))
    up.present(here, supervisor, arguments.service)
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
    """The services that run, in the order of their starts. A service that was stopped on purpose stays stopped."""
    found = supervisor.processes()
    for name, status in found.items():
        if status.state == "STOPPED":
            say(f"{name} is stopped, and stays so")
    return [name for name, status in found.items() if status.state not in ("STOPPED", supervision.ABSENT)]


def _refuse_another_configuration(here: Place, given: Path | None) -> None:
    """Refuse another configuration than the node was started with, and one that is wrong, since a restarted service
    reads the node's file. Settings that a restart does not apply are reported.
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
