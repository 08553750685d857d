"""``splitd help [VERB [ACTION]]``: what ``--help`` says of it; ``splitd help --man``: all of it, as a man page."""

from __future__ import annotations

import argparse

from client import shown
from deploy import manual, splitd

HELP = "say what splitd, or a verb and its action, does and takes"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="VERB", help="such as: images remove")
    parser.add_argument(
        "--man",
        action="store_true",
        help="all verbs, as a man page: splitd help --man | man -l - (make install installs it)",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.man:
        shown.document(manual.page(splitd.parser()))
        return 0
    return splitd.run([*arguments.words, "--help"])
