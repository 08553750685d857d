"""``splitd config default|check|dump``: explains the configuration file, checks it, and prints the effective one, which
for a node that is up is what it runs with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from client.shown import complain, page, say
from deploy import configuration, place, running, supervision
from deploy.failure import Failure, mistyped
from services.kit import settings

HELP = "print the default configuration with its comments, check a file, or print the effective configuration"
ACTIONS = ("default", "check", "dump")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        metavar="ACTION",
        help=(
            "default: print every setting with its explanation; check: print errors and warnings; dump: print the "
            "configuration that the node runs with, or would run with if it is not up"
        ),
    )
    parser.add_argument("file", nargs="?", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    action = arguments.action
    if action not in ACTIONS:
        raise Failure(
            mistyped(action, list(ACTIONS), "action") if action else f"say what to do: config {'|'.join(ACTIONS)}", 2
        )
    if arguments.file is not None:
        raise Failure(f"a file is named by --config: splitd config {action} --config {arguments.file}", 2)
    if action == "default":
        page(configuration.text(settings.File(), comments=True))
        return 0
    path = place.config_file(arguments)
    if action == "check":
        return _check(path)
    here = place.find(arguments)
    up, given = supervision.is_up(here), place.given_config(arguments)
    if up and given not in (None, here.config):
        say(
            f"warning: the node at {here.state} runs with configuration {here.config or 'defaults'}, not with this one",
            file=sys.stderr,
        )
    elif up:
        say(*(f"warning: {line}" for line in running.differences(here)), file=sys.stderr)
        page(running.text(here))
        return 0
    refuse_errors(path)
    here, _ = place.to_start(arguments)
    page(configuration.text(settings.read(here.config), comments=False, root=here.root, state=here.state))
    return 0


def _check(path: Path | None) -> int:
    found = configuration.check(path)
    for line in found.warnings:
        say(f"warning: {line}", file=sys.stderr)
    for line in [*found.errors, *found.troubles]:
        complain(line)
    if found.errors or found.troubles:
        return 1
    say(
        f"no configuration file: all defaults ({place.ETC} does not exist; --config names another)"
        if path is None
        else f"{path} is valid"
    )
    return 0


def refuse_errors(path: Path | None) -> None:
    """Raise a Failure with all errors of a configuration that keep a node from starting. Warnings and troubles go to
    standard error.
    """
    found = configuration.check(path)
    for line in [*found.warnings, *found.troubles]:
        say(f"warning: {line}", file=sys.stderr)
    if found.errors:
        raise Failure(found.errors[0], more=found.errors[1:])
