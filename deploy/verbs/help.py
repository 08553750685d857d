"""``splitd help [VERB [ACTION]]`` prints what ``--help`` prints; ``splitd help --man`` prints the man page."""

from __future__ import annotations

import argparse

from client import shown
from deploy import manual, splitd

HELP = "explain splitd, or a verb and its action, and list the options"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="VERB", help="such as: images remove")
    parser.add_argument(
        "--man",
        action="store_true",
        help="print all verbs as a man page: splitd help --man | man -l - (make install installs it)",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.man:
        shown.document(manual.page(splitd.parser()))
        return 0
    return splitd.run([*arguments.words, "--help"])
