"""The guard against an older database: what it does not know is held back until an operator says otherwise.

A database that lost its last transactions (a backup that was put back, a log that was cut off or damaged) takes what
they made for garbage. So its collector removes in its own stores only what it once named itself, as soon as there is a
sign of that:

- a raw name with a number (``NAMESPACE/NUMBER/NAME``) that this database never gave out, or one given out since the
  last good sweep under which this database knows nothing: numbers are recorded before they are used, and so is what is
  named by them;
- a log that ends before its last transaction (``kit/damage.py``);
- a raw store that is another metadata store's, or had things in it before this one made any: this database is a new one
  in the place of one that is lost.

Damaged pages, or what could be saved of them, are worse: such a database is as it never was, with any record gone and
those there that were made with it. By it nothing at all is collected.

Such a sign may be seen once only: the numbers that are given out next hide the first. So it is recorded (``held``), and
holds for all raw stores, until :func:`release`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from services.metadata import schema
from services.metadata.database import Database
from services.metadata.gc.raw import Listing
from services.metadata.store import Held, Raw
from services.metadata.transactions import Reader, Transaction

log = logging.getLogger(__name__)

OLDER = (
    "{backend} has {name}, of which this metadata store knows nothing: it is an older copy, or has lost its last "
    "transactions"
)
_ANY = ""
"""The namespace under which :func:`release` notes that a backend is to be swept whatever is in it."""


def held(tx: Reader) -> Held | None:
    """Why and since when things are held back; None if they are not."""
    return schema.HELD.get(tx)


async def hold(database: Database, reason: str, *, damaged: bool = False) -> None:
    """Hold back what is not known, from now on; with ``damaged`` everything. The first reason stays, unless less
    was held back for it.
    """

    def work(tx: Transaction) -> bool:
        known = schema.HELD.get(tx)
        if known is not None and known.damaged >= damaged:
            return False
        schema.HELD.put(tx, value=Held(since=time.time_ns(), reason=reason, damaged=damaged))
        return True

    if await database.transactions.write(work):
        log.warning(
            "%s; %s is collected, until splitd gc --release",
            reason,
            "nothing" if damaged else "nothing that is not known here",
        )


async def release(database: Database) -> None:
    """An operator says that what is not known here may go, another metadata store's things too. It goes with the
    next sweep.
    """

    def work(tx: Transaction) -> None:
        schema.HELD.delete(tx)
        schema.CHECKED.delete_all(tx)
        gateway = schema.GATEWAY.get(tx)
        for backend in gateway.backends() if gateway is not None else ():
            schema.CHECKED.put(tx, backend, _ANY, value=1)

    await database.transactions.write(work)
    database.released()
    log.warning("all is collected again, as an operator said")


def released(tx: Reader, backend: str) -> bool:
    """Whether an operator has said that what is not known in ``backend`` may go, and it has not gone yet."""
    return schema.CHECKED.has(tx, backend, _ANY)


def stranger(tx: Reader, listing: Listing, once: frozenset[Raw]) -> str:
    """A raw name there that shows that this database is older than the store; "" if there is none. ``once`` are
    those that were known to be named before it was listed.
    """
    backend = listing.backend
    if released(tx, backend):
        return ""
    # else there was no good sweep yet, by a splitd that noted it
    table = schema.CHECKED if schema.CHECKED.any(tx, backend) else None
    seen: dict[str, int] = {}
    for raw, namespace, number in _numbered(listing):
        if namespace not in seen:
            seen[namespace] = (
                table.get(tx, backend, namespace) if table is not None else schema.SEQUENCES.get(tx, namespace)
            ) or 0
        if number > seen[namespace] and raw not in once and not schema.NAMED.has(tx, *raw):
            return raw.name
    return ""


def _numbered(listing: Listing) -> Iterator[tuple[Raw, str, int]]:
    for kind, names in (("ingest", listing.ingests), ("snapshot", listing.snapshots)):
        for name in names:
            parts = name.split("/", 2)
            if len(parts) == 3 and parts[1].isascii() and parts[1].isdigit():
                yield Raw(listing.backend, kind, name), parts[0], int(parts[1])  # type: ignore[arg-type]


def unnoted(tx: Reader, backend: str) -> dict[str, int]:
    """The numbers given out by now that a good sweep of ``backend`` vouches for, and that are not noted yet; with
    that :func:`release` was carried out.
    """
    found = {
        namespace: number
        for (namespace,), number in schema.SEQUENCES.scan(tx)
        if schema.CHECKED.get(tx, backend, namespace) != number
    }
    return {**found, _ANY: 0} if schema.CHECKED.has(tx, backend, _ANY) else found


def note(tx: Transaction, backend: str, numbers: dict[str, int]) -> None:
    """A sweep of ``backend`` as our own has ended well: what is there under these numbers is known, or gone."""
    for namespace, number in numbers.items():
        if namespace == _ANY:
            schema.CHECKED.delete(tx, backend, _ANY)
        else:
            schema.CHECKED.put(tx, backend, namespace, value=number)
