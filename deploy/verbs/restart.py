"""``splitd restart SERVICE``: stop a service, start it again, wait until it is healthy. Containers do not notice."""

from __future__ import annotations

import argparse
import sys

from client.shown import complain, say
from deploy import health, place, supervision
from deploy.failure import Failure
from deploy.processes import NAMES, named
from deploy.verbs import up

HELP = "stop services and start them again, one after the other; containers do not notice"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", nargs="*", metavar="SERVICE", help=", ".join(NAMES))
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="how long to wait for each one's health (default 30)")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.service:
        raise Failure(f"say which service ({', '.join(NAMES)})", 2)
    up.known(arguments.service)
    here = place.find(arguments)
    supervisor = supervision.Supervisor(here)
    for name in arguments.service:
        supervisor.stop(named(name))
        supervisor.start(named(name))
        (after,) = health.wait(here, arguments.timeout, {name})
        if not after.healthy:
            complain(f"{name} is not healthy after its restart: {after.trouble}")
            say(*up.last_words(here, name), file=sys.stderr)
            complain(f"see {here.hint(f'logs {name}')}")
            return 1
        say(f"restarted {name}: pid {after.status.pid}")
    return 0
