"""The operator's command: ``splitd VERB ...``.

Each verb is a file in deploy/verbs. An error is one line on standard error and an exit code: 1 failed, 2 mistyped, 3 no
node is up, 130 interrupted. SPLITD_DEBUG=1 shows the traceback of a bug.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol, cast

from client.shown import complain, say
from deploy import place
from deploy.failure import Failure, mistyped
from deploy.verbs import VERBS
from services.kit import errors, version


class Verb(Protocol):
    """The interface of a file in deploy/verbs."""

    HELP: str

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of this verb. --root, --state and --config are added elsewhere."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and return the exit code."""


ELSEWHERE = {
    "start": "up",
    "stop": "down",
    "load": "images import",
    "save": "images export",
    "rmi": "images remove",
    **{word: f"images {word}" for word in ("inspect", "remove", "rm", "tag", "export", "import", "list", "ls")},
    **dict.fromkeys(("ps", "top"), "status: Containers are shown by a client, such as ctr tasks ls"),
    **dict.fromkeys(("run", "exec", "kill"), "ctr run: Containers are started by a client, such as ctr"),
}
"""Words of other programs, with splitd's own words for them."""


def loaded(name: str) -> Verb:
    """Import a verb. It is imported only now, so that a command does not wait for the imports of other verbs."""
    return cast(Verb, importlib.import_module(f"deploy.verbs.{name}"))


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line that says what would be right."""

    def error(self, message: str) -> NoReturn:
        say(f"{self.prog}: {message} ({self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def parser(names: Sequence[str] = VERBS) -> Parser:
    """The command line of these verbs."""
    top = Parser(
        prog="splitd",
        description=(
            "Run a splitd node, containerd's API from separate processes under supervisord, and move its images."
        ),
        allow_abbrev=False,
    )
    top.add_argument(
        "--version", action="version", version=f"splitd {version.SPLITD} (speaks containerd {version.CONTAINERD})"
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for name in names:
        verb = loaded(name)
        each = verbs.add_parser(name, help=verb.HELP, description=verb.HELP, allow_abbrev=False)
        verb.arguments(each)
        place.add_arguments(each)
    return top


def run(words: list[str]) -> int:
    """Run a command line, and return its exit code."""
    verb = next((w for w in words if not w.startswith("-")), None)
    if verb is None and not {"-h", "--help", "--version"} & set(words):
        parser().print_help()
        return 2
    if (
        verb is not None
        and verb not in VERBS
        and (not words[0].startswith("-") or words[0] in ("--root", "--state", "--config"))
    ):
        late = words[0].startswith("-")
        complain(
            "say the verb first, then its options: splitd up --state DIR"
            if late
            else mistyped(verb, list(VERBS), "verb", ELSEWHERE.get(verb, ""))
        )
        return 2
    arguments = parser((verb,) if verb in words[:1] else VERBS).parse_args(words)
    return loaded(arguments.verb).run(arguments)


def main() -> NoReturn:
    """The entry point of ``splitd`` and of ``python -m deploy``."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `splitd logs X | head` ends quietly
    sys.exit(answered(sys.argv[1:]))


def answered(words: list[str]) -> int:
    """As :func:`run`, but an error is a line on standard error, and an exit code. argparse's raise SystemExit."""
    try:
        if "_ARGCOMPLETE" in os.environ:  # a shell asks for TAB completion
            from deploy import completion

            completion.complete(parser())
        return run(words)
    except KeyboardInterrupt:
        return 130
    except (Failure, errors.NodeError) as failure:
        complain(*(failure.lines if isinstance(failure, Failure) else (str(failure),)))
        return failure.code if isinstance(failure, Failure) else 1
    except Exception as error:
        if os.environ.get("SPLITD_DEBUG"):
            raise
        complain(_described(error))
        return 1


def _described(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{error.filename}: permission denied: run this as root (sudo)"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return f"{error.filename}: a file is where a directory must be: choose another directory"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and errors.is_full(error):  # the error of a write names no file
        return f"{errors.words(error)}: the filesystem of the node's root or of its state is full (df shows which)"
    if isinstance(error, ModuleNotFoundError):
        return f"Python module {error.name} is not installed: `make up` makes an environment that has it, in .venv"
    return f"{type(error).__name__}: {error} (SPLITD_DEBUG=1 shows where)"


if __name__ == "__main__":
    main()
