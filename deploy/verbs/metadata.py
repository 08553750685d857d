"""``splitd metadata export|import|migrate``: all records of the node, to a file, from one, and to the other store. The
node must be down.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
import shutil
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from client.shown import say
from deploy import place, transferring
from deploy.failure import Failure
from deploy.place import Place
from services.etcd.store import Conflict, Etcd, Mod, Put
from services.kit import errors, process, settings
from services.metadata import config as configuration
from services.metadata import moving
from services.metadata.etcd_rows import ALIVE, Keys, Owner
from services.metadata.transactions import Transactions

T = TypeVar("T")
PATIENCE = 30.0
"""Seconds for which etcd may be silent, before and while it tells all records."""

HELP = (
    "write all records of the node to a file, read them back, or move them to etcd or from there; the node must be "
    "down (see docs/operating.md)"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    action = transferring.actions(parser, namespace=False)
    export = action("export", "write all records to a file, which takes its place when it is whole")
    export.add_argument("file", metavar="FILE")
    import_ = action(
        "import", "make the records of an exported file those of a node that has none; if it is cut, repeat it"
    )
    import_.add_argument("file", metavar="FILE")
    migrate = action("migrate", "move all records to the other store, and compare them; if it is cut, repeat it")
    migrate.add_argument("--to", choices=("etcd", "sqlite"), required=True, help="the store that is to have them")
    migrate.add_argument(
        "--take-over",
        action="store_true",
        default=False,
        help="become the owner of the records in etcd in place of a node that is down, and must not come back",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.action is None:
        raise Failure("say what to do: metadata export|import|migrate", 2)
    here = place.find(arguments)
    config = _settings(here)
    if arguments.action == "migrate":
        return _migrate(here, config, arguments.to, take_over=arguments.take_over)
    file = Path(arguments.file).absolute()
    side = _sqlite(here) if config.store == "sqlite" else _etcd(here, config)
    if arguments.action == "export" and config.store == "sqlite" and not _database(here).exists():
        raise Failure(f"{here.root} has no records: {_database(here)} does not exist")
    with _at_rest(here):
        if arguments.action == "export":
            say(f"exported {_run(moving.export(side, file))} to {file}")
        else:
            moved = _run(moving.load(file, side))
            root = f" --root {shlex.quote(str(here.root))}" if arguments.root else ""  # a new node knows no other
            done = "was imported already" if moved.already else "imported"
            say(f"{done}: {moved.sum}; next: {here.hint('up')}{root}")
    return 0


def _settings(here: Place) -> configuration.Config:
    try:
        return configuration.load(settings.read(here.config))
    except errors.NodeError as error:
        raise Failure(str(error).removesuffix(f": {error.suffix}")) from None


def _migrate(here: Place, config: configuration.Config, to: str, *, take_over: bool) -> int:
    if not config.etcd.endpoints:
        raise Failure(f"[metadata.etcd] endpoints is not set in {here.config or 'a configuration file'}: which etcd?")
    sides = {"sqlite": _sqlite(here), "etcd": _etcd(here, config, take_over=take_over)}
    with _at_rest(here):
        moved = _run(moving.migrate(sides["sqlite" if to == "etcd" else "etcd"], sides[to]))
    switch = "" if config.store == to else f'set [metadata] store = "{to}" in {here.config}, then '
    done = "nothing was to be moved: it has" if moved.already else "it has now"
    say(f"{sides[to].name}: {done} {moved.sum}; next: {switch}{here.hint('up')}")
    return 0


def _etcd(here: Place, config: configuration.Config, *, take_over: bool = False) -> moving.Side:
    where = here.root / "metadata"
    prefix = configuration.records_prefix(config)

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Transactions]:
        from services.etcd.client import connect  # which only a node with etcd needs
        from services.metadata.etcd import EtcdTransactions
        from services.metadata.etcd_owner import this_node

        # a mirror that is made anew, so that each opening reads what etcd has; a killed command may have left one
        mirror = where / "moving"
        shutil.rmtree(mirror, ignore_errors=True)
        mirror.mkdir(mode=0o700)
        etcd, node = connect(config.etcd), this_node(where)
        try:
            if take_over:
                await _take_over(etcd, prefix, node)
            records = EtcdTransactions(etcd, prefix, mirror / "mirror.db", node)
            try:
                async with contextlib.AsyncExitStack() as stack:
                    try:
                        async with asyncio.timeout(PATIENCE) as limit:
                            records.progressed = lambda: limit.reschedule(asyncio.get_running_loop().time() + PATIENCE)
                            await stack.enter_async_context(records.running())
                    except TimeoutError:
                        why = records.standing.why or "it is silent"
                        raise errors.Unavailable(
                            f"etcd at {', '.join(config.etcd.endpoints)} has told nothing for {PATIENCE:.0f} s: {why}"
                        ) from None
                    records.progressed = lambda: None
                    yield records
            finally:
                await records.close()
        finally:
            await etcd.close()
            shutil.rmtree(mirror, ignore_errors=True)

    return moving.Side(f"etcd ({', '.join(config.etcd.endpoints)}, prefix {config.etcd.prefix})", opened)


async def _take_over(etcd: Etcd, prefix: str, node: Owner) -> None:
    """Make ``node`` the owner of the records that another owns. FailedPrecondition while that one lives: its clients
    would fail from then on, and nobody could tell which of its containers the records still describe.
    """
    keys = Keys(prefix)
    found = await etcd.get(keys.owner)
    if found is None or (owner := Owner.decode(found.value)).node == node.node:
        return
    if await etcd.get(keys.alive) is not None:
        raise errors.FailedPrecondition(
            f"nothing was taken over: {owner} serves the records at {prefix} now. Stop it first: splitd down there; if "
            f"it has just died, or is cut off from etcd, repeat the command in {ALIVE:.0f} s"
        )
    done = await etcd.commit([Put(keys.owner, node.encode())], [Mod(keys.owner, found.mod), Mod(keys.alive, 0)])
    if isinstance(done, Conflict):
        raise errors.Aborted("the owner of the records in etcd has changed meanwhile: repeat the command")


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
