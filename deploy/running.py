"""The configuration that a running node uses: the file as each process read it at its start, in STATE/config. The file
itself may have changed since, or be new.
"""

from __future__ import annotations

import configparser
import contextlib
from collections.abc import Iterator
from pathlib import Path

from deploy import configuration
from deploy.place import ETC, Place
from deploy.processes import ALL, OPTIONAL, PROCESSES, STOP_SECONDS, Process
from gateway import announced
from gateway.config import ProxyPlugin
from services.etcd.config import EtcdConfig
from services.kit import errors, settings

SUPERVISORD = "supervisord"
"""The name for supervisord itself: tables that only ``splitd up`` reads, such as [watchdog]."""


def text(here: Place) -> str:
    """The configuration that the node's processes use, as TOML."""
    files = {table: _read(here, process.name) for process in ALL for table, _ in process.config}
    files |= {"watchdog": _read(here, SUPERVISORD)}
    return configuration.text(_read(here, "gateway"), comments=False, files=files, root=here.root, state=here.state)


def differences(here: Place) -> list[str]:
    """A line for each difference between the configuration file and what runs."""
    found = of_the_node(here)
    if here.config is None or not here.config.is_file():
        return found
    now = here.config.read_bytes()
    names = [process.name for process in processes(here)]
    old = [name for name in names if (kept := _path(here, name)).exists() and kept.read_bytes() != now]
    if old:
        found.append(
            f"{here.config} has changed since {', '.join(old)} read it: {here.hint('restart ' + ' '.join(old))}"
        )
    return found


def of_the_node(here: Place) -> list[str]:
    """The differences that only ``splitd down``, then ``splitd up``, removes."""
    if here.config is None:
        return (
            [f"{ETC} is newer than the node, which runs with defaults: it is read after splitd down, then splitd up"]
            if ETC.exists()
            else []
        )
    try:
        if _given_to_supervisord(_read(here, SUPERVISORD)) == _given_to_supervisord(settings.read(here.config)):
            return []
    except errors.NodeError as error:
        return [str(error).removesuffix(f": {error.suffix}")]
    return [
        (
            f"{here.config} has other values for the node as a whole (root, state, oom_score, [cgroup], [watchdog], "
            "grace) "
            "than it runs with: they are read after splitd down, then splitd up"
        )
    ]


def _given_to_supervisord(file: settings.File) -> object:
    """The settings that supervisord is given."""
    tables = file.tables
    return [tables.get(name) for name in ("root", "state", "oom_score", "cgroup", "watchdog")] + [
        configuration.grace(process, file) for process in PROCESSES
    ]


def keep(here: Place) -> None:
    """Store the configuration that supervisord is started with."""
    settings.keep(settings.read(here.config), here.state, SUPERVISORD)


def proxies(here: Place) -> dict[str, ProxyPlugin]:
    """The proxy plugins that the gateway was started with, by name."""
    file = _read(here, "gateway")
    return {
        name: settings.load(ProxyPlugin, file, f"proxy_plugins.{name}") for name in file.tables.get("proxy_plugins", {})
    }


def etcds(here: Place) -> Iterator[tuple[str, EtcdConfig]]:
    """The etcd clusters that the processes were started with, by their tables."""
    for process in processes(here):
        with contextlib.suppress(errors.InvalidArgument):  # of an older release; the next start of the process names it
            for table, value in configuration.of_process(process, _read(here, process.name)):
                yield from configuration.etcds(table, value)


def snapshotters(here: Place) -> tuple[str, ...]:
    """Our own snapshotters, as the snapshots service announced them to the gateway."""
    return tuple(each.name for each in announced.kept(here.root))


def processes(here: Place) -> tuple[Process, ...]:
    """The processes of the node, as supervisord was told."""
    conf = _supervisords(here)
    return (*PROCESSES, *(process for process in OPTIONAL if conf.has_section(f"program:{process.name}")))


def forget(here: Place, process: Process) -> None:
    """Remove what was kept of a process that the node has no more."""
    _path(here, process.name).unlink(missing_ok=True)


def stop_seconds(here: Place, process: Process) -> int:
    """Seconds that supervisord waits for a process to end before it kills it, as it was told at its start."""
    return _supervisords(here).getint(f"program:{process.name}", "stopwaitsecs", fallback=STOP_SECONDS)


def _supervisords(here: Place) -> configparser.RawConfigParser:
    """The configuration that supervisord was given."""
    conf = configparser.RawConfigParser(strict=False)
    conf.read(here.supervisord_conf)
    return conf


def _path(here: Place, name: str) -> Path:
    return here.state / settings.RUNNING / f"{name}.toml"


def _read(here: Place, name: str) -> settings.File:
    """The file of a process; the defaults if the process never started."""
    path = _path(here, name)
    return settings.read(path if path.exists() else None)
