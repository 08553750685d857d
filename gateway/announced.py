"""Which snapshotters the snapshots service has: it announces them, and what it said last is kept.

    ROOT/gateway/snapshotters.json    the last announcement

So a snapshotter whose service is down is one that is down, not one that there is not; and what was never announced is
unknown. Before the first announcement of a node, and after the first start of a release that keeps it, those are known
whose stores are there.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from services.snapshots.store import About

log = logging.getLogger(__name__)

_MOST = 1 << 20
"""Bytes of what is kept."""


def kept(root: Path) -> tuple[About, ...]:
    """What was announced last to the gateway of the node at ``root``; none if nothing was. What cannot be read is
    as if it were not there: it is announced again.
    """
    path = _path(root)
    try:
        if path.stat().st_size > _MOST:
            raise ValueError(f"it has more than {_MOST} bytes")
        return tuple(_about(each) for each in json.loads(path.read_bytes()))
    except FileNotFoundError:
        return tuple(
            About(path.parent.name, exports={"root": str(path.parent)})
            for path in sorted((root / "snapshots").glob("*/metadata.db"))
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s is not what was kept: %s", path, error)
        return ()


def keep(root: Path, announced: Sequence[About]) -> None:
    """Keep an announcement, durably. OSError as it comes."""
    path = _path(root)
    new = path.with_suffix(".new")
    with new.open("w") as file:
        json.dump([dataclasses.asdict(each) for each in announced], file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _path(root: Path) -> Path:
    return root / "gateway" / "snapshotters.json"


def _about(found: dict[str, object]) -> About:
    named = {"broken": False, **found}  # which releases before did not say
    name, platforms, exports, capabilities, trouble, broken = (named[each.name] for each in dataclasses.fields(About))
    if not (
        isinstance(name, str)
        and isinstance(trouble, str)
        and isinstance(broken, bool)
        and isinstance(platforms, list)
        and isinstance(capabilities, list)
        and isinstance(exports, dict)
        and all(isinstance(word, str) for word in (*platforms, *capabilities, *exports, *exports.values()))
    ):
        raise ValueError(f"{found!r:.200} is no snapshotter")
    return About(name, tuple(platforms), exports, tuple(capabilities), trouble, broken)
