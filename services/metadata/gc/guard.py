"""The guard against an old copy of the database: what it does not know is held back until an operator releases it.

A database that has lost its last transactions (a restored backup, a log that was cut off or damaged) takes the results
of these transactions for garbage. So, on a sign of such a loss, the collector removes only what this database has
itself named. Signs are:

- a raw name with a number (``NAMESPACE/NUMBER/NAME``) that this database never gave out, or gave out since the last
  good sweep without having named such a thing. Both the number and the name are recorded before they are used;
- a log that ends before its last transaction (``kit/damage.py``);
- a raw store that belongs to another metadata store, or had things in it before this one made any: this database has
  replaced one that was lost.

Damaged pages, or records rescued from them, are worse: any record may be missing while others of the same time are
there. By such a database nothing at all is collected.

A sign may be visible only once: the next numbers that are given out hide the first one. So the sign is recorded
(``held``), and holds for all raw stores until :func:`release`.
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
    "{backend} has {name}, which this metadata store does not know: the store is an older copy, or has lost its last "
    "transactions"
)
_ANY = ""
"""The namespace under which :func:`release` records that a backend is to be swept with everything in it."""


def held(tx: Reader) -> Held | None:
    """Why and since when the collector is held; None if it is not."""
    return schema.HELD.get(tx)


async def hold(database: Database, reason: str, *, damaged: bool = False) -> None:
    """Hold back from now on what this database does not know; if ``damaged``, everything. An earlier reason stays,
    unless it held back less.
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
            "nothing" if damaged else "only what this database knows",
        )


async def release(database: Database) -> None:
    """Let everything be collected that this database does not know, even things of another metadata store, because an
    operator says so. The next sweep removes it.
    """

    def work(tx: Transaction) -> None:
        schema.HELD.delete(tx)
        schema.CHECKED.delete_all(tx)
        gateway = schema.GATEWAY.get(tx)
        for backend in gateway.backends() if gateway is not None else ():
            schema.CHECKED.put(tx, backend, _ANY, value=1)

    await database.transactions.write(work)
    database.released()
    log.warning("released by an operator: everything is collected again")


def released(tx: Reader, backend: str) -> bool:
    """Whether an operator has released ``backend`` and no good sweep has followed yet."""
    return schema.CHECKED.has(tx, backend, _ANY)


def unknown_name(tx: Reader, listing: Listing, once: frozenset[Raw]) -> str:
    """A raw name in the backend that shows that this database is older than the backend; "" if there is none. ``once``
    has the names that were known before the backend was listed.
    """
    backend = listing.backend
    if released(tx, backend):
        return ""
    # else no sweep of a splitd that records this was good yet
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


def unchecked_numbers(tx: Reader, backend: str) -> dict[str, int]:
    """The numbers given out by now that a good sweep of ``backend`` confirms and that are not recorded yet; and, if so,
    the fact that :func:`release` was carried out.
    """
    found = {
        namespace: number
        for (namespace,), number in schema.SEQUENCES.scan(tx)
        if schema.CHECKED.get(tx, backend, namespace) != number
    }
    return {**found, _ANY: 0} if schema.CHECKED.has(tx, backend, _ANY) else found


def record_checked(tx: Transaction, backend: str, numbers: dict[str, int]) -> None:
    """Record that a sweep of ``backend`` as our own has ended well: everything under these numbers is known, or
    gone.
    """
    for namespace, number in numbers.items():
        if namespace == _ANY:
            schema.CHECKED.delete(tx, backend, _ANY)
        else:
            schema.CHECKED.put(tx, backend, namespace, value=number)
