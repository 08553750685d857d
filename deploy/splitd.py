"""The operator's command: ``splitd VERB ...``.

Each verb is a file in deploy/verbs. An error is one line on standard error and an exit code: 1 failed, 2 mistyped, 3 no
node is up, 130 interrupted. SPLITD_DEBUG=1 shows the traceback of a bug.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol, TextIO, cast

from client.shown import OUTPUT, complain, say
from deploy import place
from deploy.failure import Failure, mistyped
from deploy.verbs import VERBS
from services.kit import errors, version

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


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


class Standard(io.FileIO):
    """Standard output or standard error, which remembers why it took no more."""

    def __init__(self, number: int, name: str) -> None:
        super().__init__(number, "w", closefd=False)
        self.failure: OSError | None = None
        self._name = name

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = OSError(error.errno, errors.words(error), self._name)
            raise self.failure from None

    @classmethod
    def around(cls, file: TextIO | None, name: str) -> TextIO:
        """``file``, written by such a one; /dev/null, if it was closed (``>&-``). Nothing of it was written yet."""
        raw = cls(os.open(os.devnull, os.O_WRONLY) if file is None else file.fileno(), name)
        return io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding="utf-8" if file is None else file.encoding,
            errors="backslashreplace" if file is None else file.errors,
            line_buffering=raw.isatty() or name == "standard error",
        )


def main() -> NoReturn:
    """The entry point of ``splitd`` and of ``python -m deploy``. When nobody reads what it prints any more (``splitd
    logs X | head``), it ends as by SIGPIPE. The signal itself is ignored: it would also end a command without a word
    when the node goes away.
    """
    sys.stdout = Standard.around(sys.stdout, OUTPUT)
    sys.stderr = Standard.around(sys.stderr, "standard error")
    code: int | str | None = 0
    try:
        code = answered(sys.argv[1:])
    except SystemExit as end:
        code = end.code
    except OSError:  # of the words for another error
        code = 1
    if (unprinted := _unprinted()) is not None and not code:
        code = _ended_by(unprinted)
    sys.exit(code)


def _unprinted() -> OSError | None:
    """Why not all that was printed went out, if so. What is left is dropped."""
    found: OSError | None = None
    for file in (sys.stdout, sys.stderr):
        raw = getattr(getattr(file, "buffer", None), "raw", None)
        if isinstance(raw, Standard):
            with contextlib.suppress(OSError):
                file.flush()
            if raw.failure is not None:
                found = found or raw.failure
                with open(os.devnull, "w") as nothing:
                    os.dup2(nothing.fileno(), file.fileno())
    return found


def _ended_by(unprinted: OSError) -> int:
    """The exit code where standard output takes no more. It does not return if its reader has gone: it ends as programs
    do that know nothing of pipes.
    """
    if isinstance(unprinted, BrokenPipeError):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    with contextlib.suppress(OSError):
        complain(_described(unprinted))
    _unprinted()
    return 1


def answered(words: list[str]) -> int:
    """As :func:`run`, but an error is a line on standard error, and an exit code. argparse's raise SystemExit."""
    try:
        if "_ARGCOMPLETE" in os.environ:  # a shell asks for TAB completion
            from deploy import completion

            completion.complete(parser())
        return run(words)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        unprinted = error if isinstance(error, OSError) and error.filename == OUTPUT else _unprinted()
        if unprinted is not None:
            return _ended_by(unprinted)
        if isinstance(error, Failure | errors.NodeError):
            complain(*(error.lines if isinstance(error, Failure) else (str(error),)))
            return error.code if isinstance(error, Failure) else 1
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
