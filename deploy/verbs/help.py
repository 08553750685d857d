"""``splitd help [VERB [ACTION]]``: what ``--help`` says of it."""

from __future__ import annotations

import argparse

from deploy import splitd

HELP = "say what splitd, or a verb and its action, does and takes"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="VERB", help="such as: images remove")


def run(arguments: argparse.Namespace) -> int:
    return splitd.run([*arguments.words, "--help"])
