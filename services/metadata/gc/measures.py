"""How much a collection does at a time, and how long it waits. Nobody needs to set them; tests take small ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Counts, and seconds."""

    records: int = 256
    """Dead records that go in one transaction: some two milliseconds, in which nobody else is answered; each
    transaction may have to wait until somebody's is on the disk.
    """
    retry: float = 1.0
    retry_limit: float = 30.0
    """Seconds until a postponed sweep is tried again: first, and at most. Each time twice as long."""
    look: float = 1.0
    """Seconds after a write at which to look whether something new expires earlier than all that is known."""
    victims: int = 64
    snapshots: int = 16
    """Victims that are marked at a time; whoever wants one of them waits for as many removals at most. A snapshot's
    may take a second.
    """
    together: int = 512
    snapshots_together: int = 128
    """The same where a backend takes many in one call: some milliseconds of its disk's."""
    beside: float = 5.0
    """Seconds for the snapshotters to be looked at."""
