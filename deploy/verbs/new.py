"""``splitd new KIND NAME``: begins a service of one's own."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from client.shown import say
from deploy import beginning, place
from deploy.failure import Failure, mistyped

HELP = (
    "begin a snapshotter or a content store of your own, in a new folder: a program that works at once, and its test "
    "(see docs/write-a-service.md)"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", help=" or ".join(beginning.KINDS))
    parser.add_argument(
        "name", metavar="NAME", help="lower case letters, digits and dashes; it names files and sockets"
    )
    parser.add_argument("directory", metavar="DIRECTORY", nargs="?", type=Path, help="where (default: NAME)")


def run(arguments: argparse.Namespace) -> int:
    kind, name = arguments.kind, arguments.name
    if kind not in beginning.KINDS:
        raise Failure(mistyped(kind, list(beginning.KINDS), "kind of service"), 2)
    files = beginning.begin(kind, name, arguments.directory or Path(name))
    say(*(os.path.relpath(file) for file in files))
    program = os.path.relpath(files[0])
    call = program if os.sep in program else f"./{program}"
    say(
        f"next: {call} --root /var/lib/{name} --address /run/{name}.sock",
        f"then: {' '.join(place.program())} conform /run/{name}.sock --type {beginning.KINDS[kind].type}",
    )
    return 0
