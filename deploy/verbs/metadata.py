"""``splitd metadata export|import``: all records of the node, to a file and from one. The node must be down."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from client.shown import say
from deploy import place, transferring
from deploy.failure import Failure
from deploy.place import Place
from services.kit import errors, process
from services.metadata import moving

T = TypeVar("T")

HELP = "write all records of the node to a file, and read them back; the node must be down (see docs/operating.md)"


def arguments(parser: argparse.ArgumentParser) -> None:
    action = transferring.actions(parser, namespace=False)
    export = action("export", "write all records to a file, which takes its place when it is whole")
    export.add_argument("file", metavar="FILE")
    import_ = action(
        "import", "make the records of an exported file those of a node that has none; if it is cut, repeat it"
    )
    import_.add_argument("file", metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action is None:
        raise Failure("say what to do: metadata export|import", 2)
    here = place.find(arguments)
    file = Path(arguments.file).absolute()
    if arguments.action == "export" and not _database(here).exists():
        raise Failure(f"{here.root} has no records: {_database(here)} does not exist")
    with _at_rest(here):
        if arguments.action == "export":
            say(f"exported {_run(moving.export(_sqlite(here), file))} to {file}")
        else:
            moved = _run(moving.load(file, _sqlite(here)))
            root = f" --root {shlex.quote(str(here.root))}" if arguments.root else ""  # a new node knows no other
            done = "was imported already" if moved.already else "imported"
            say(f"{done}: {moved.sum}; next: {here.hint('up')}{root}")
    return 0


@contextlib.contextmanager
def _at_rest(here: Place) -> Iterator[None]:
    """Hold the lock of the metadata process during the block; a Failure if that process runs."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(process.owned(here.root / "metadata", patience=0.0))
        except errors.FailedPrecondition:
            raise Failure(
                f"the metadata service of this node runs ({here.root / 'metadata'} is locked), or another splitd "
                f"metadata does: {here.hint('down')} first; containers keep running"
            ) from None
        yield


def _database(here: Place) -> Path:
    return here.root / "metadata" / "metadata.db"


def _sqlite(here: Place) -> moving.Side:
    path = _database(here)
    return moving.Side(f"SQLite ({path})", lambda: moving.sqlite(path))


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except errors.NodeError as error:
        raise Failure(str(error).removesuffix(f": {error.suffix}")) from None
