"""``splitd salvage``: put a new database, of what can be read, in the place of one whose pages are damaged."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from client.shown import say
from deploy import place, supervision
from deploy.failure import Failure
from services.kit import errors
from services.kit.salvage import salvage
from services.metadata import schema
from services.snapshots import tree

HELP = "put a new database, of what can be read, in the place of one whose pages are damaged; the node must be down (see docs/damaged-database.md)"

OF = {
    "metadata": ("metadata", "metadata.db.damaged", schema.readable),
    "overlayfs": ("snapshots/overlayfs", "held", tree.readable),
    "native": ("snapshots/native", "held", tree.readable),
}
"""For each database, where it is below the root, the file there by which its service knows that records may be lost, and what is a record."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("database", choices=sorted(OF), metavar="DATABASE", help=f"whose: {', '.join(OF)} (of a snapshotter)")


def run(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)
    if supervision.is_up(here):
        raise Failure(f"the node at {here.state} is up: {here.hint('down')} first; containers go on running")
    folder, note, sound = OF[arguments.database]
    path = here.root / folder / "metadata.db"
    if not path.exists():
        raise Failure(f"{path} is not there")
    aside, new = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}"), path.with_name(f"{path.name}.salvaged")
    for suffix in ("", "-journal"):
        Path(f"{new}{suffix}").unlink(missing_ok=True)
    try:
        found = salvage(path, new, sound)
    except errors.DataLoss as error:
        new.unlink(missing_ok=True)
        raise Failure(f"{str(error).removesuffix(f': {error.suffix}')}; nothing was changed: see docs/damaged-database.md") from None
    if not (path.parent / note).exists():  # before anything believes it to be whole
        (path.parent / note).write_text(f"{path} was made of what could be read of a damaged one\n")
    for suffix in ("", "-wal"):
        if Path(f"{path}{suffix}").exists():
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    Path(f"{path}-shm").unlink(missing_ok=True)
    new.rename(path)
    for table, saved in found.items():
        lost = [f"{saved.gaps} {'place' if saved.gaps == 1 else 'places'} could not be read"] if saved.gaps else []
        lost += [f"{saved.damaged} left out, which are not what was written"] if saved.damaged else []
        lost += [f"{saved.orphans} left out, whose parents could not be read"] if saved.orphans else []
        say(f"{table}: {saved.rows - saved.orphans} saved{'; ' if lost else ''}{', '.join(lost)}")
    say(f"the damaged database is kept as {aside}; next: {here.hint('up')}")
    return 0
