"""``splitd status``: each process with its state, whether the node is healthy, and which registries have trouble. For
people, and with ``--json`` for programs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from client import fleet_remote
from client.routes_remote import Stands
from client.shown import say, table
from deploy import etcds, health, place, revisions, supervision
from deploy import held as heldback
from deploy.fleet import standing
from deploy.place import Place
from deploy.processes import optional
from deploy.verbs import up
from services.etcd.store import ClusterStatus
from services.kit import version
from services.metadata.transactions import Standing

HELP = (
    "print state, pid, uptime, memory, health and restarts of each service and proxy plugin, and registries with "
    "trouble; exit code 0: all services, and plugins that replace one, are healthy; 1: some are not; 3: no node is up"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)
    try:
        supervisor = supervision.reached(here)
        supervisor_pid = supervisor.pid()
        found = health.of_node(here)
        others = health.proxied(here)
    except supervision.NotUp as failure:
        if arguments.json:
            print(json.dumps(describe(here, 0, [], [], None, [], None)))
            return failure.code
        raise
    held = heldback.known(here)
    healthy = {h.status.name for h in found if h.healthy}
    registries = health.registries(here) if "images" in healthy else None
    traces = health.traces(here) if "traces" in healthy else None
    candidates = health.candidates(here) if "gateway" in healthy else []
    clusters = etcds.clusters(here)
    records = etcds.records(here) if clusters else None
    fleet = standing.of_node(here) if "fleet" in healthy else None
    if arguments.json:
        known = describe(
            here, supervisor_pid, found, others, registries, held, traces, candidates, clusters, records, fleet
        )
        print(json.dumps(known, indent=2))
    else:
        print_table(here, found, others, traces, candidates)
        say(
            *died(here, found),
            *revisions.differences(here, found, supervisor.code()),
            *killed(found),
            *kept(here, held),
            *([etcds.line(records, time.time())] if records is not None else []),
            *etcds.lines(clusters),
            *standing.lines(fleet),
            *troubled(registries or [], time.time()),
        )
    return 0 if _healthy(found, others) else 1


def _healthy(found: list[health.Health], others: list[health.Proxied]) -> bool:
    """Whether the node works. Another project's snapshotter beside ours does not count, nor a service that the node did
    not have when it was started, nor an optional one.
    """
    return all(h.healthy or h.status.state == supervision.ABSENT or optional(h.status.name) for h in found) and all(
        p.healthy for p in others if p.in_place
    )


def describe(
    here: Place,
    supervisor_pid: int,
    found: list[health.Health],
    others: list[health.Proxied],
    registries: list[health.Registry] | None,
    held: list[heldback.HeldBack],
    traces: health.Traces | None,
    candidates: Sequence[Stands] = (),
    clusters: Mapping[str, ClusterStatus] = MappingProxyType({}),
    records: Standing | None = None,
    fleet: fleet_remote.Standing | None = None,
) -> dict[str, object]:
    """The status as JSON. If no node is up, ``up`` is false and there are no services.

    - ``version`` and ``revision`` are those of the installed splitd. In a service they are those that it runs, or null
      if it does not tell.
    - ``memory`` is PSS in bytes, ``uptime`` is in seconds.
    - ``watchdog`` has the seconds for which the service is ``silent``, how many were ``killed``, and of the last kill
      ``why`` and when (``at``, seconds since the epoch).
    - ``database`` is the size of metadata's, in bytes.
    - ``held_back`` says which store (``what``) holds back what its records do not know, why, and since when (seconds
      since the epoch).
    - ``proxy_plugins`` are services of other projects. One that is ``in_place`` of ours must be healthy for the node to
      be healthy.
    - ``etcd`` has each etcd cluster of the configuration, by its ``table``: what each member says, and whether the
      cluster is ``available``. Sizes are in bytes.
    - ``records`` says where those in etcd stand: which ``revision`` the node's mirror shows, for how many seconds etcd
      is ``away`` (null: it is there) and why, and for how many more seconds reads go on (``reads``). It is null if the
      records are not in etcd.
    - ``fleet`` is how the node stands in its fleet: its name there, the address where the others get blobs, the
      ``troubles``, which do not make the node unhealthy, how many blobs the others are told of, how many more there are
      (``left_out``), how many arrive, and the bytes that the others got; null if it is in none.
    - ``candidates`` take new objects of a route, or are draining (``drained``); ``splitd routes`` says more.
    - ``registries`` are those that the node has asked since the images service started, good ones too; null if that
      service is not healthy.
    - ``traces`` is what the traces service holds: traces, spans, bytes on the disk, when the oldest came (nanoseconds
      since the epoch), how many spans were dropped, and the ``trouble`` if its file cannot be used; null if the service
      is not healthy.
    """
    return {
        "version": version.VERSION,
        "revision": version.installed(),
        "root": str(here.root),
        "state": str(here.state),
        "address": str(here.socket),
        "up": supervisor_pid > 0,
        "healthy": supervisor_pid > 0 and _healthy(found, others),
        "supervisord": {"pid": supervisor_pid, "memory": health.pss(supervisor_pid)} if supervisor_pid else None,
        "services": [
            {
                "name": h.status.name,
                "state": h.status.state,
                "pid": h.status.pid or None,
                "uptime": round(h.status.uptime, 1),
                "memory": h.memory,
                "version": h.runs and h.runs[0],
                "revision": h.runs and h.runs[1],
                "healthy": h.healthy,
                "trouble": h.trouble,
                "restarts": h.status.restarts,
                "watchdog": dataclasses.asdict(h.status.watched),
            }
            for h in found
        ],
        "proxy_plugins": [{**dataclasses.asdict(p), "healthy": p.healthy} for p in others],
        "candidates": [
            {
                "route": each.terms.route,
                "name": each.terms.name,
                "address": each.terms.address,
                "trouble": each.trouble,
                "drained": each.drained,
            }
            for each in candidates
        ],
        "database": database(here),
        "held_back": [dataclasses.asdict(each) for each in held],
        "registries": None if registries is None else [dataclasses.asdict(each) for each in registries],
        "etcd": etcds.described(clusters),
        "records": records and dataclasses.asdict(records),
        "fleet": standing.described(fleet),
        "traces": traces and dataclasses.asdict(traces),
    }


def died(here: Place, found: list[health.Health]) -> list[str]:
    """A line for each service that ended by itself and is not healthy, with the last warning or error of its log."""
    return [
        f"{h.status.name} ended by itself {_times(h.status.restarts)};{line.removeprefix(' ')}"
        for h in found
        if h.status.restarts and not h.healthy
        for line in up.last_words(here, h.status.name)
    ]


def killed(found: list[health.Health]) -> list[str]:
    """A line for each service of which the watchdog has killed processes."""
    return [
        f"{h.status.name} hung and was killed {_times(h.status.watched.killed)}, last at "
        f"{_clock(h.status.watched.at)}: {h.status.watched.why}; "
        "its stacks are in its log"
        for h in found
        if h.status.watched.killed
    ]


def kept(here: Place, held: list[heldback.HeldBack]) -> list[str]:
    """A line for each store that holds things back; these take room until an operator releases them."""
    return [
        (
            f"what {each.what} does not know is held back since {_clock(each.since)}: {each.reason}; see "
            f"docs/damaged-database.md, then {here.hint('gc --release')}"
        )
        for each in held
    ]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def troubled(registries: list[health.Registry], now: float) -> list[str]:
    """A line for each registry or mirror that is not good, or that serves no parts of blobs. They do not make a node
    unhealthy: it asks others, or will try again.
    """
    return [
        (
            f"registry {each.host} is {each.state} for {_duration(max(now - each.since, 0))} (since "
            f"{_clock(each.since)}): "
            f"{each.last_error}; "
        )
        + (
            f"asked after all others for {_duration(each.rests_until - now)} (until {_clock(each.rests_until)})"
            if each.rests_until > now
            else "the next pull tries it"
        )
        for each in registries
        if each.state != "good"
    ] + [
        f"registry {each.host} refuses parts of blobs ({each.ranges_refused}): a layer comes whole, on one connection, "
        "and an interrupted one begins at its first byte; "
        f"parts are asked for again in {_duration(each.ranges_refused_until - now)} (at "
        f"{_clock(each.ranges_refused_until)})"
        for each in registries
        if each.ranges_refused_until > now
    ]


def _clock(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def print_table(
    here: Place,
    found: list[health.Health],
    others: list[health.Proxied],
    traces: health.Traces | None,
    candidates: Sequence[Stands] = (),
) -> None:
    rows = [("SERVICE", "STATE", "PID", "UPTIME", "MEMORY", "RESTARTS", "HEALTH")]
    rows += [
        (
            h.status.name,
            h.status.state,
            str(h.status.pid or "-"),
            _duration(h.status.uptime) if h.status.pid else "-",
            f"{h.memory / (1 << 20):.1f} MiB" if h.memory else "-",
            str(h.status.restarts),
            h.trouble or "ok",
        )
        for h in found
    ]
    rows += [
        (p.name, f"PROXY {p.kind}", "-", "-", "-", "-", f"{p.address} {p.trouble}" if p.trouble else "ok")
        for p in others
    ]
    rows += [
        (
            each.terms.backend,
            "DRAINING" if each.drained else "CANDIDATE",
            "-",
            "-",
            "-",
            "-",
            f"{each.terms.address} {each.trouble}" if each.trouble else "ok",
        )
        for each in candidates
    ]
    say(f"node {here.socket}, root {here.root}, installed {version.VERSION} (revision {version.installed()})")
    table(rows)
    if size := sum(database(here).values()):
        say(f"database of metadata: {size / (1 << 20):.1f} MiB")
    if traces is not None and traces.trouble:
        say(f"traces: {traces.trouble}; spans are lost")
    elif traces is not None:
        lost = f"; {traces.dropped:,} spans were dropped" if traces.dropped else ""
        say(f"traces: {traces.traces:,} of {traces.spans:,} spans, {traces.bytes / (1 << 20):.1f} MiB{lost}")


def database(here: Place) -> dict[str, int]:
    """Bytes on the disk of metadata's database, or of its mirror of etcd's, and of the log. A file that does not exist
    is left out.
    """
    mirror = here.state / "metadata" / "mirror.db"
    path = mirror if mirror.exists() else here.root / "metadata" / "metadata.db"
    found = {}
    for name, file in (("size", path), ("log", path.with_name(f"{path.name}-wal"))):
        with contextlib.suppress(OSError):
            found[name] = file.stat().st_size
    return found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
