"""``splitd fleet ...``: what the node knows of the other nodes of its fleet. Each action is a file in deploy/fleet."""

from __future__ import annotations

import argparse
import importlib
from typing import cast

from deploy import transferring
from deploy.fleet import ACTIONS
from deploy.splitd import Verb

HELP = "print the nodes of the node's fleet and what they have, and let them pull images (see docs/fleet.md)"


def arguments(parser: argparse.ArgumentParser) -> None:
    _action(ACTIONS[0]).arguments(parser)
    action = transferring.actions(parser, namespace=False)
    for name in ACTIONS:
        one = _action(name)
        one.arguments(action(name, one.HELP))


def run(arguments: argparse.Namespace) -> int:
    return _action(arguments.action or ACTIONS[0]).run(arguments)


def _action(name: str) -> Verb:
    return cast(Verb, importlib.import_module(f"deploy.fleet.{name}"))
