"""``splitd completion SHELL``: what a shell reads so that TAB completes verbs, options, services and the names of
images.
"""

from __future__ import annotations

import argparse

from client import shown
from deploy import completion
from deploy.failure import Failure, mistyped

HELP = (
    'print what a shell reads to complete this command, as in: eval "$(splitd completion bash)"; make install '
    "installs it"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", help=", ".join(completion.SHELLS))


def run(arguments: argparse.Namespace) -> int:
    if arguments.shell not in completion.SHELLS:
        raise Failure(mistyped(arguments.shell, list(completion.SHELLS), "shell"), 2)
    shown.document(completion.script(arguments.shell))
    return 0
