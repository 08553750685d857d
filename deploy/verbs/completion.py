"""``splitd completion SHELL`` prints the script for TAB completion of verbs, options, services and names of images."""

from __future__ import annotations

import argparse

from client import shown
from deploy import completion
from deploy.failure import Failure, mistyped

HELP = (
    'print the script for TAB completion in a shell, for example: eval "$(splitd completion bash)"; make install '
    "installs it"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", help=", ".join(completion.SHELLS))


def run(arguments: argparse.Namespace) -> int:
    if arguments.shell not in completion.SHELLS:
        raise Failure(mistyped(arguments.shell, list(completion.SHELLS), "shell"), 2)
    shown.document(completion.script(arguments.shell))
    return 0
