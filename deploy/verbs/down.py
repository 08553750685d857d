"""``splitd down``: stops the node. Containers keep running, under their shims, and the next ``splitd up`` finds them
again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
from functools import partial

from client.shown import say
from deploy import containers, place, running, supervision
from deploy.failure import Failure
from deploy.place import Place
from deploy.processes import ALL_NAMES, named
from deploy.verbs import up

HELP = "stop the node; containers keep running unless --containers is given"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "service",
        nargs="*",
        metavar="SERVICE",
        help=f"stop only these services; they stay down until splitd up ({', '.join(ALL_NAMES)})",
    )
    parser.add_argument(
        "--containers", action="store_true", help="stop the containers of all namespaces first, and delete their tasks"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="with --containers: the time from SIGTERM to SIGKILL (default 10)",
    )


def run(arguments: argparse.Namespace) -> int:
    services = up.known(arguments.service)
    if services and arguments.containers:
        raise Failure("--containers stops the whole node: name no services with it", 2)
    here = place.find(arguments)
    if not (services or arguments.containers or supervision.is_up(here)):
        say(f"no node is up at {here.state}: nothing to stop")
        return 0
    try:
        supervisor = supervision.reached(here)
        pid, end = supervisor.pid(), supervisor.shutdown
    except (supervision.NotUp, supervision.Unreachable):
        pid = supervision.pid_of(here)
        if services or not pid:
            raise
        end = partial(os.kill, pid, signal.SIGTERM)  # its socket was removed
    if services:
        up.present(here, supervisor, services)
        for name in reversed(ALL_NAMES):
            if name in services:
                supervisor.stop(named(name))
                say(f"stopped {name}")
        return 0
    if arguments.containers:
        stopped = asyncio.run(containers.stop_all(here.socket, arguments.grace, here.bundles))
        say(f"stopped {stopped} container{'' if stopped == 1 else 's'}")
    end()
    _wait_for_end(here, pid)
    _unmount_layers(here)
    say(f"the node at {here.state} is down{'' if arguments.containers else '; containers keep running'}")
    return 0


def _unmount_layers(here: Place) -> None:
    """Unmount the layers of the snapshotter erofs, so that nothing of the node is mounted while it is down. Containers
    that keep running have mounts of their own; the node mounts layers again when they are asked for.
    """
    points = [*(here.root / "snapshots/erofs/mounts").glob("*")]
    if points:
        subprocess.run(["umount", "--", *points], check=False, capture_output=True)  # what somebody uses stays


def _wait_for_end(here: Place, pid: int) -> None:
    seconds = sum(running.stop_seconds(here, process) for process in running.processes(here))
    if not supervision.wait(lambda: not supervision.is_up(here), seconds):
        raise Failure(f"supervisord (pid {pid}) has not ended within {seconds} s: see {here.hint('logs supervisord')}")
