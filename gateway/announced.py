"""The snapshots service announces its snapshotters; the last announcement is stored.

    ROOT/gateway/snapshotters.json    the last announcement

So a snapshotter whose service is down is UNAVAILABLE, not unknown; one that was never announced is unknown. As long as
none is stored (a new node, or the first start of a release that stores it), the snapshotters are those whose stores are
on the disk.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from services.kit import files
from services.snapshots.store import About

log = logging.getLogger(__name__)

_MOST = 1 << 20
"""Bytes of the file, at most."""


def kept(root: Path) -> tuple[About, ...]:
    """The last announcement to the gateway of the node at ``root``; empty if there was none. A file that cannot be read
    counts as none: the service will announce again.
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
        log.warning("%s does not hold an announcement: %s", path, error)
        return ()


def keep(root: Path, announced: Sequence[About]) -> None:
    """Store an announcement, durably. OSError as it comes."""
    files.replace(_path(root), json.dumps([dataclasses.asdict(each) for each in announced], indent=1))


def _path(root: Path) -> Path:
    return root / "gateway" / "snapshotters.json"


def _about(found: dict[str, object]) -> About:
    named = {"broken": False, **found}  # earlier releases did not say it
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
