"""``splitd salvage``: replaces a database that has damaged pages by a new one, with all records that can be read."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from client.shown import say
from deploy import place, supervision
from deploy.failure import Failure
from services.kit import errors
from services.kit.salvage import salvage
from services.metadata import schema
from services.snapshots import tree

HELP = (
    "replace a database that has damaged pages by a new one, with all that can be read; the node must be down "
    "(see docs/damaged-database.md)"
)

METADATA = "metadata"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "database", metavar="DATABASE", help=("metadata, or the name of a snapshotter, such as overlayfs")
    )


def _databases(root: Path) -> dict[str, tuple[Path, str, Callable[[Sequence[Any]], bool]]]:
    """For each existing database: its file; the file beside it that tells its service that records may be lost; and a
    function that tells whether a row is a valid record.
    """
    found = {
        METADATA: (root / "metadata/metadata.db", "metadata.db.damaged", schema.readable),
        **{
            path.parent.name: (path, "held", tree.readable)
            for path in sorted((root / "snapshots").glob("*/metadata.db"))
        },
    }
    return {name: each for name, each in found.items() if each[0].exists()}


def run(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)
    if supervision.is_up(here):
        raise Failure(f"the node at {here.state} is up: {here.hint('down')} first; containers keep running")
    databases = _databases(here.root)
    if arguments.database not in databases:
        raise Failure(f"{here.root} has no database of {arguments.database}: {', '.join(databases) or 'it has none'}")
    path, note, sound = databases[arguments.database]
    aside, new = (
        path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}"),
        path.with_name(f"{path.name}.salvaged"),
    )
    for suffix in ("", "-journal"):
        Path(f"{new}{suffix}").unlink(missing_ok=True)
    try:
        found = salvage(path, new, sound)
    except errors.DataLoss as error:
        new.unlink(missing_ok=True)
        raise Failure(
            f"{str(error).removesuffix(f': {error.suffix}')}; nothing was changed: see docs/damaged-database.md"
        ) from None
    if not (path.parent / note).exists():  # before any process believes the database to be whole
        (path.parent / note).write_text(f"{path} was made of what could be read of a damaged one\n")
    for suffix in ("", "-wal"):
        if Path(f"{path}{suffix}").exists():
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    Path(f"{path}-shm").unlink(missing_ok=True)
    new.rename(path)
    for table, saved in found.items():
        lost = [f"{saved.gaps} {'place' if saved.gaps == 1 else 'places'} could not be read"] if saved.gaps else []
        lost += [f"{saved.damaged} left out, since they are not what was written"] if saved.damaged else []
        lost += [f"{saved.orphans} left out, since their parents could not be read"] if saved.orphans else []
        say(f"{table}: {saved.rows - saved.orphans} saved{'; ' if lost else ''}{', '.join(lost)}")
    say(f"the damaged database is kept as {aside}; next: {here.hint('up')}")
    return 0
