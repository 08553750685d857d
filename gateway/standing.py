"""Candidates are stored, so that a restart forgets neither what an operator wanted nor where objects are.

    ROOT/gateway/routes.json    the candidates of all routes

It is written before a candidate gets its first object. If it is lost, objects of candidates are still recorded under
their backends: the same names, given again, lead to them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from gateway.candidates import Candidate, Terms
from services.kit import errors, files

log = logging.getLogger(__name__)

_MOST = 1 << 20
"""Bytes of the file, at most."""


def kept(root: Path) -> list[Candidate]:
    """The candidates of the node at ``root``. A file that cannot be read is put aside, and logged as an error."""
    path = _path(root)
    try:
        if path.stat().st_size > _MOST:
            raise ValueError(f"it has more than {_MOST} bytes")
        return [_candidate(each) for each in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError, errors.NodeError) as error:
        aside = path.with_name(f"{path.name}.damaged")
        log.error(
            "%s does not hold the candidates of routes, so they are unknown (it is now %s): %s", path, aside, error
        )
        try:
            path.replace(aside)
        except OSError as failure:
            log.error("%s: %s", aside, failure.strerror)
        return []


def keep(root: Path, candidates: Sequence[Candidate]) -> None:
    """Store them, durably. OSError as it comes."""
    entries = [
        {**dataclasses.asdict(each.terms), "since": each.since, "drained": each.drained, "configured": each.configured}
        for each in candidates
    ]
    files.replace(_path(root), json.dumps(entries, indent=1))


def _path(root: Path) -> Path:
    return root / "gateway" / "routes.json"


def _candidate(found: Any) -> Candidate:
    if not isinstance(found, dict):
        raise TypeError(f"{found!r:.100} is no candidate")
    values: dict[str, Any] = {}
    hints = get_type_hints(Terms)
    for each in dataclasses.fields(Terms):
        value, hint = found.get(each.name, each.default), hints[each.name]  # an older release has fewer
        if hint is float and isinstance(value, int | float) and math.isfinite(value):
            values[each.name] = float(value)
        elif hint in (bool, str) and isinstance(value, hint):
            values[each.name] = value
        elif hint not in (float, bool, str) and isinstance(value, list | tuple):
            values[each.name] = tuple(map(str, value))
        else:
            raise ValueError(f"{each.name} of a candidate is {value!r:.100}")
    terms = Terms(**values)
    terms.check()
    since, drained, configured = float(found["since"]), found["drained"], found["configured"]
    if not (isinstance(drained, str) and isinstance(configured, str) and math.isfinite(since)):
        raise ValueError(f"{terms.backend} is {drained!r:.100}")
    return Candidate(terms, since, drained, configured)
