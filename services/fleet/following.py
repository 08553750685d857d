"""What is below a prefix of etcd, as it changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from services.etcd.store import Compacted, Etcd
from services.fleet.told import read

MOST = 2000
"""Keys that are looked at."""


async def following(etcd: Etcd, prefix: bytes) -> AsyncGenerator[Mapping[str, Mapping[str, Any]]]:
    """The values below ``prefix``, by the rest of their keys; all of them again at each change. It raises what etcd
    does.
    """
    while True:
        found: dict[str, Mapping[str, Any]] = {}
        revision = 0
        async for page in etcd.pages(prefix):
            revision = page.revision
            found.update({_rest(prefix, pair.key): read(pair) for pair in page.pairs})
            if len(found) >= MOST:
                break
        yield dict(found)
        try:
            async with etcd.watch(prefix, after=revision) as changes:
                async for each in changes:
                    for change in each.changes:
                        found.pop(_rest(prefix, change.key), None)
                        if change.pair is not None and len(found) < MOST:
                            found[_rest(prefix, change.key)] = read(change.pair)
                    if each.changes:
                        yield dict(found)
        except Compacted:
            continue


def _rest(prefix: bytes, key: bytes) -> str:
    return key.removeprefix(prefix).decode(errors="replace")
