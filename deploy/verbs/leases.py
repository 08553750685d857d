"""``splitd leases ...``: lists leases, which hold things that no image holds, such as the parts of interrupted pulls,
and removes them.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from client import bars
from client.leases_remote import Held
from client.shown import say, table
from deploy import place, transferring
from deploy.failure import Failure
from deploy.verbs.images import age, timestamp
from services.content.store import Status
from services.kit import errors

HELP = "list leases, which hold things that no image holds, such as the parts of interrupted pulls, and remove them"


def arguments(parser: argparse.ArgumentParser) -> None:
    transferring.add_namespace(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for list")
    action = transferring.actions(parser)

    list_ = action(
        "list",
        "print for each lease its age, when it expires, what it holds, and for which pull; and the unfinished blobs, "
        "which "
        "are kept for a day (the default action)",
        "ls",
    )
    list_.add_argument("--json", action="store_true", help="print JSON")
    remove = action("remove", "delete leases; what only they held is collected", "rm")
    remove.add_argument("leases", nargs="*", default=(), metavar="LEASE")
    remove.add_argument(
        "--interrupted",
        action="store_true",
        default=False,
        help=(
            "delete the leases of interrupted pulls by splitd, and unfinished blobs that are not being written; such a "
            "pull then begins anew"
        ),
    )
    remove.add_argument("--sync", action="store_true", default=False, help="return when everything is collected")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action in ("remove", "rm"):
        if arguments.json:
            raise Failure("--json is for list, not for remove", 2)
        return _remove(arguments)
    return _list(arguments)


def _list(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)

    async def found() -> tuple[list[Held], Sequence[Status], Mapping[str, int]]:
        async with transferring.connected(here, arguments.namespace) as client:
            return await client.leases.list(), await client.leases.ingests(), await client.leases.sizes()

    leases, ingests, sizes = transferring.run(found())
    if arguments.json:
        print(
            json.dumps(
                {
                    "leases": [summary(lease, sizes) for lease in leases],
                    "ingests": [begun(ingest) for ingest in ingests],
                },
                indent=2,
            )
        )
        return 0
    now = time.time_ns()
    table(
        [
            ("LEASE", "CREATED", "EXPIRES", "HOLDS", "PULL"),
            *(
                (
                    lease.lease,
                    age(now - lease.created_at),
                    lease.expires or "never",
                    held(lease, sizes),
                    f"{lease.pull}{' (under way)' if lease.running else ''}" or "-",
                )
                for lease in leases
            ),
        ]
    )
    if ingests:
        table(
            [
                ("INGEST", "BEGUN", "HAS", "OF"),
                *(
                    (
                        ingest.ref,
                        age(now - ingest.started_at),
                        bars.size(ingest.offset),
                        bars.size(ingest.total) if ingest.total else "?",
                    )
                    for ingest in ingests
                ),
            ]
        )
    return 0


def begun(ingest: Status) -> dict[str, Any]:
    """An unfinished blob as ``--json`` has it. ``bytes`` have arrived of ``total``, which is null if it is not
    known.
    """
    return {
        "ref": ingest.ref,
        "bytes": ingest.offset,
        "total": ingest.total or None,
        "started": timestamp(ingest.started_at),
        "updated": timestamp(ingest.updated_at),
    }


def summary(lease: Held, sizes: Mapping[str, int]) -> dict[str, Any]:
    """A lease as ``--json`` has it. ``bytes`` are those of its blobs. ``expires`` and ``pull`` are null if it has
    none.
    """
    return {
        "lease": lease.lease,
        "created": timestamp(lease.created_at),
        "expires": lease.expires or None,
        "pull": lease.pull or None,
        "running": lease.running,
        "bytes": bytes_of(lease, sizes),
        "resources": [{"type": kind, "id": name} for kind, name in lease.resources],
    }


def held(lease: Held, sizes: Mapping[str, int]) -> str:
    """``3 blobs (12.0 MiB), 1 snapshot``"""
    counts = collections.Counter(kind.partition("/")[0] for kind, _ in lease.resources)
    words = {"content": "blob", "snapshots": "snapshot", "ingests": "ingest", "images": "image"}
    return (
        ", ".join(
            f"{count} {words.get(kind, kind)}{'' if count == 1 else 's'}"
            + (f" ({bars.size(bytes_of(lease, sizes))})" if kind == "content" else "")
            for kind, count in sorted(counts.items())
        )
        or "nothing"
    )


def bytes_of(lease: Held, sizes: Mapping[str, int]) -> int:
    """The size of the blobs that a lease holds, even if others hold them too."""
    return sum(sizes.get(name, 0) for kind, name in lease.resources if kind == "content")


def _remove(arguments: argparse.Namespace) -> int:
    names: Sequence[str] = arguments.leases
    if not names and not arguments.interrupted:
        raise Failure("say which leases, or --interrupted (splitd leases lists them)", 2)
    if names and arguments.interrupted:
        raise Failure("--interrupted removes all that were interrupted: name no leases with it", 2)
    here = place.find(arguments)

    async def removed() -> list[str]:
        missing = []
        async with transferring.connected(here, arguments.namespace) as client:
            for name in names or [lease.lease for lease in await client.leases.list() if lease.interrupted]:
                try:
                    await client.leases.delete(name, sync=arguments.sync)
                except errors.NotFound as error:
                    missing.append(str(error))
                    continue
                say(f"removed lease {name}")
            if arguments.interrupted:
                for ingest in await client.leases.ingests():
                    if await client.leases.abort(ingest):
                        say(f"removed ingest {ingest.ref} ({bars.size(ingest.offset)})")
        return missing if names else []  # a lease that has ended meanwhile is gone, as wanted

    if missing := transferring.run(removed()):
        raise Failure(missing[0], more=missing[1:])
    return 0
