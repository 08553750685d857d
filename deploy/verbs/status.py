"""``splitd status``: each process with its state, and whether the node is healthy, for people and (``--json``) for programs."""

from __future__ import annotations

import argparse
import json

from deploy import health, place, supervision
from deploy.place import Place
from services.kit import version

HELP = "state, pid, uptime, memory, health and restarts of each service; exit code 0 only if all are healthy, 3 if no node is up"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)
    try:
        supervisor_pid = supervision.Supervisor(here).pid()
        found = health.of_node(here)
    except supervision.NotUp as failure:
        if arguments.json:
            print(json.dumps(describe(here, 0, [])))
            return failure.code
        raise
    if arguments.json:
        print(json.dumps(describe(here, supervisor_pid, found), indent=2))
    else:
        print_table(here, found)
    return 0 if all(h.healthy for h in found) else 1


def describe(here: Place, supervisor_pid: int, found: list[health.Health]) -> dict[str, object]:
    """The status as JSON has it; ``up`` false and no services where no node is up. ``memory`` is PSS in bytes, ``uptime`` in seconds."""
    return {
        "version": version.VERSION, "root": str(here.root), "state": str(here.state), "address": str(here.socket),
        "up": supervisor_pid > 0, "healthy": supervisor_pid > 0 and all(h.healthy for h in found),
        "supervisord": {"pid": supervisor_pid, "memory": health.pss(supervisor_pid)} if supervisor_pid else None,
        "services": [{
            "name": h.status.name, "state": h.status.state, "pid": h.status.pid or None, "uptime": round(h.status.uptime, 1), "memory": h.memory,
            "healthy": h.healthy, "trouble": h.trouble, "restarts": h.status.restarts,
        } for h in found],
    }


def print_table(here: Place, found: list[health.Health]) -> None:
    rows = [("SERVICE", "STATE", "PID", "UPTIME", "MEMORY", "RESTARTS", "HEALTH")]
    rows += [(h.status.name, h.status.state, str(h.status.pid or "-"), _duration(h.status.uptime) if h.status.pid else "-",
              f"{h.memory / (1 << 20):.1f} MiB" if h.memory else "-", str(h.status.restarts), h.trouble or "ok") for h in found]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"node {here.socket}, root {here.root}")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
