"""Settings of the tasks service: table [tasks], and its keys in containerd's [timeouts]."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from services.kit import errors, settings
from services.kit.settings import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Tasks: how shims are started, and how long they may take."""

    shim_env: tuple[str, ...] = ()
    """Variables (NAME=VALUE) added to the environment of shims, such as SCHED_CORE=1."""
    load_timeout: Seconds = 5.0
    """At the start of the service: time that a shim may take to answer before it counts as slow. A slow shim is kept,
    and asked again.
    """
    load_parallel: int = 16
    """Shims that are asked at the same time then."""
    state_timeout: Seconds = 2.0
    """Time that a shim may take to report the state of a process."""
    call_timeout: Seconds = 120.0
    """Time that a shim may take for any other call except Wait."""
    cleanup_timeout: Seconds = 5.0
    """Time that cleaning up after a dead shim may take."""
    shutdown_timeout: Seconds = 3.0
    """Time that a shim may take to end when its task is deleted."""
    restart_interval: Seconds = 10.0
    """Time between two looks of the restart monitor at containers labelled containerd.io/restart.status. Also read from
    [plugins."io.containerd.monitor.container.v1.restart"].
    """


_TIMEOUTS = {
    "io.containerd.timeout.shim.load": "load_timeout",
    "io.containerd.timeout.shim.cleanup": "cleanup_timeout",
    "io.containerd.timeout.shim.shutdown": "shutdown_timeout",
    "io.containerd.timeout.task.state": "state_timeout",
}

_RESTART = ("io.containerd.monitor.container.v1.restart", "io.containerd.internal.v1.restart")
"""The restart monitor's table, with the key ``interval``: its name since 2.0, and before."""


def load(file: settings.File) -> Config:
    """The settings in [tasks] of ``file``, overridden by containerd's names in [timeouts]. The restart monitor's table
    counts unless [tasks] has restart_interval.
    """
    config = settings.load(Config, file, "tasks")
    plugins = file.tables.get("plugins", {})
    for name in (
        _RESTART if isinstance(plugins, dict) and "restart_interval" not in file.tables.get("tasks", {}) else ()
    ):
        table = plugins.get(name, {})
        text = table.get("interval") if isinstance(table, dict) else None
        if text is not None:
            try:
                config = dataclasses.replace(config, restart_interval=settings.parse_duration(text))
            except (TypeError, ValueError):
                raise errors.InvalidArgument(
                    f'config file {file.path}: [plugins."{name}"] interval: {text!r} is not a duration such as "5s"'
                ) from None
            break
    for key, field in _TIMEOUTS.items():
        text = file.tables.get("timeouts", {}).get(key)
        if text is not None:
            try:
                config = dataclasses.replace(config, **{field: settings.parse_duration(text)})  # type: ignore[arg-type]
            except (TypeError, ValueError):
                raise errors.InvalidArgument(
                    f'config file {file.path}: [timeouts] {key}: {text!r} is not a duration such as "5s"'
                ) from None
    return config
