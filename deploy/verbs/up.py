"""``splitd up``: starts the node, or its stopped services, and waits until it is healthy."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from client.shown import complain, say
from deploy import foreign, health, memory, place, reconcile, revisions, supervision
from deploy.failure import Failure, mistyped
from deploy.place import Place
from deploy.processes import ALL_NAMES, named, optional
from deploy.verbs import config
from services.kit import errors

HELP = "start the node, or its stopped services, and wait until it is healthy"

NEEDED = {"setpriv": "util-linux", "runc": "runc", "containerd-shim-runc-v2": "containerd"}
"""Programs that a node starts, and the Debian packages that have them."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "service",
        nargs="*",
        metavar="SERVICE",
        help=f"start only these services, on a node that is up ({', '.join(ALL_NAMES)})",
    )
    parser.add_argument(
        "--foreground", action="store_true", help="stay in the foreground, for systemd: become supervisord"
    )
    parser.add_argument(
        "--moved", action="store_true", help="accept a root that was moved, or is a copy of another node's root"
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait for health (default 60)"
    )


def run(arguments: argparse.Namespace) -> int:
    services = known(arguments.service)
    if os.geteuid() != 0:
        raise Failure("a node mounts file systems and starts containers: run this as root (sudo)")
    try:
        here, remembered = place.to_start(arguments)
    except Failure:
        # this raises all errors of the file, not only the first
        config.refuse_errors(place.config_file(arguments))
        raise
    config.refuse_errors(here.config)
    place.check(here)
    check_machine()
    foreign.refuse(here, place.chosen(arguments, here))
    with supervision.claimed(here) as lock:
        if lock is None:
            return _again(here, services, arguments)
        if services:
            raise supervision.not_up(here)
        _refuse_another_root(here, moved=arguments.moved)
        _refuse_containers_of_another_root(here)
        if arguments.moved and here.root.exists():
            supervision.claim_root(here, moved=True)
        if arguments.foreground:
            _remember(here, remembered)
            supervision.become(here, lock)
        supervision.start(here, lock, arguments.timeout)
        _remember(here, remembered)
    return _report(here, arguments.timeout, "the node is up")


def _remember(here: Place, remembered: memory.Remembered) -> None:
    """Remember what the next ``splitd up`` need not be told. If this cannot be written, for example on a full disk, the
    node is up all the same.
    """
    try:
        memory.keep(here.state, remembered)
    except OSError as error:
        complain(f"warning: after a reboot, splitd up needs --root and --config of this node: {errors.words(error)}")


def _refuse_another_root(here: Place, *, moved: bool) -> None:
    """Refuse a root that differs from the last one. It has other images and containers, and an operator who forgot an
    option must not find the node's own gone.
    """
    last = place.last_started(here.state)
    if last is not None and not moved and not place.same(last.root, here.root):
        raise Failure(
            f"the node at {here.state} was last started with root {last.root}, not {here.root}: --root {last.root} "
            "starts it again; "
            f"--moved starts it with {here.root}, from now on"
        )
    if last is not None and not moved and _is_empty(here.root):
        raise Failure(
            f"the node at {here.state} was last started with root {here.root}, and nothing is there: mount its disk, "
            "or "
            "name the directory that it was moved to (--root DIR --moved); --moved alone begins with an empty root"
        )


def _refuse_containers_of_another_root(here: Place) -> None:
    """Refuse another root while containers run. Their files are below the root that they were started with: with
    another root they would be shown as that node's containers, and write where nobody looks.
    """
    last = place.last_started(here.state)
    if last is None or place.same(last.root, here.root) or not last.root.exists():
        return
    found = sorted(
        f"{bundle.parent.name}/{bundle.name}"
        for bundle in here.bundles.glob("*/*")
        if bundle.is_dir() and not bundle.name.startswith(".")
    )
    if found:
        raise Failure(
            f"containers run whose files are below {last.root}, not {here.root} "
            f"({', '.join(found[:5])}{f' and {len(found) - 5} more' if len(found) > 5 else ''}): "
            f"{here.hint(f'up --root {last.root}')} and {here.hint('down --containers')} first"
        )


def _is_empty(root: Path) -> bool:
    """Whether it does not exist, or is a directory without anything in it, such as a mount point."""
    return not root.exists() or (root.is_dir() and not any(root.iterdir()))


def known(names: list[str]) -> set[str]:
    """Names of services as typed, checked."""
    for name in names:
        if name not in ALL_NAMES:
            raise Failure(mistyped(name, list(ALL_NAMES), "service"), 2)
    return set(names)


def present(here: Place, supervisor: supervision.Supervisor, names: Iterable[str]) -> None:
    """Refuse names of services that this node does not have."""
    there = supervisor.processes()
    for name in names:
        if name not in there:
            needs = named(name).needs
            raise Failure(
                f"this node has no service {name}: [{'.'.join(needs[:-1])}] {needs[-1]} is not in its configuration "
                f"({here.config or 'defaults'})"
            )


def _again(here: Place, services: set[str], arguments: argparse.Namespace) -> int:
    """The node is up already: start what is stopped, and say so."""
    running = place.recall(here.state)
    if running is not None and running.root != here.root:
        raise Failure(
            f"the node at {here.state} is up with root {running.root}, not {here.root}: splitd down first, or choose "
            "another state directory"
        )
    if arguments.foreground:
        raise Failure(f"the node at {here.state} is up already: {here.hint('down')} first")
    supervisor = supervision.Supervisor(here)
    if not supervision.wait(lambda: supervision.answers(here), arguments.timeout):
        supervisor.pid()  # raises what is wrong
    changed = reconcile.optional(running or here, supervisor)
    present(here, supervisor, services)
    stopped = [
        s.name
        for s in supervisor.processes().values()
        if s.state not in (supervision.RUNNING, "STARTING", supervision.ABSENT)
    ]
    chosen = [name for name in stopped if not services or name in services]
    for name in chosen:
        supervisor.start(named(name))
    said = f"started {', '.join(chosen)}" if chosen else "the node is up already"
    if running is not None and running.config != here.config:
        said += f" (with configuration {running.config or 'defaults'}; another is read after splitd down)"
    if changed:
        say(*changed, f"{here.hint('restart images')} lets pulls know it")
    return _report(here, arguments.timeout, said)


def _report(here: Place, seconds: float, said: str) -> int:
    found = health.wait(here, seconds)
    sick = [h for h in found if not h.healthy]
    if all(optional(h.status.name) for h in sick):
        say(f"{said}: {here.socket}", f"  try  ctr -a {here.socket} version", f"       {here.hint('status')}")
        say(*revisions.differences(here, found, supervision.Supervisor(here).code()))
        away = health.away(here)
        complain(
            *(
                f"{each.name}, which replaces our {each.kind} service, is away: {each.address} {each.trouble}"
                for each in away
            )
        )
        _complain_of(here, sick)
        return 1 if away else 0
    _complain_of(here, sick)
    complain(f"see {here.hint(f'logs {sick[0].status.name}')}")
    return 1


def _complain_of(here: Place, sick: Iterable[health.Health]) -> None:
    for each in sick:
        complain(f"{each.status.name} is not healthy: {each.trouble}")
        say(*last_words(here, each.status.name), file=sys.stderr)


def last_words(here: Place, service: str) -> list[str]:
    """The last warning or error that a service logged, to print below its trouble."""
    try:
        lines = here.log(service).read_text(errors="replace").splitlines()[-200:]
    except OSError:
        return []
    found = [line for line in lines if " ERROR " in line or " WARNING " in line]
    return [f"  its log: {found[-1]}"] if found else []


def check_machine() -> None:
    """Raise one Failure that names all programs missing on this machine, and the command that installs them."""
    path = supervision.environment(os.environ)["PATH"]
    missing = {name: package for name, package in NEEDED.items() if shutil.which(name, path=path) is None}
    if missing:
        raise Failure(f"{', '.join(missing)} not found: apt-get install {' '.join(sorted(set(missing.values())))}")
