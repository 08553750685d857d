"""Batch sizes and delays of a collection. They are no settings; tests use small values."""

from __future__ import annotations

from dataclasses import dataclass

from services.metadata.gc.mark import STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Counts, and times in seconds."""

    records: int = 512
    """Dead records that one transaction removes. This takes some three milliseconds, in which no other call is
    answered; each transaction may also have to wait for the disk behind another caller's, so few are better than many.
    """
    step: int = STEP
    """Records that are looked at without a pause."""
    apart: int = 2
    """Turns of the loop between two slices of reading and deciding. A call needs some six turns, and would have a slice
    in each. With more turns, a collection would be slow beside calls that fill them.
    """
    written: int = 200
    """Keys that one transaction of the collector looks at. Keys that many clients write while all records are read are
    looked at in several transactions.
    """
    forgotten: int = 256
    """Gone things whose names are forgotten in one transaction."""
    retry: float = 1.0
    retry_limit: float = 30.0
    """Delay before a postponed sweep is repeated: the first one, and the limit. It doubles each time."""
    look: float = 1.0
    """Delay after a write before the collector looks whether the new record expires earlier than all that it knows."""
    victims: int = 64
    snapshots: int = 16
    """Victims that are marked at a time, where a backend removes one at a time. A caller who wants one of them waits
    for at most as many removals; the removal of a snapshot may take a second.
    """
    together: int = 512
    snapshots_together: int = 128
    """The same where a backend removes many in one call, which takes some milliseconds of its disk."""
    beside: float = 5.0
    """Time limit for looking at the snapshotters before unknown blobs are removed."""
    again: float = 60.0
    """Delay before those are asked again of which one did not answer in that time."""
    silence: float = 5.0
    """A caller who waits for a collection does not wait for a backend that has been silent for so long: one that hangs
    would hold up deletes of what others have. The sweep goes on.
    """
