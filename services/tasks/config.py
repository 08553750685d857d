"""Settings of the tasks service: table [tasks], and of containerd's [timeouts] those that are its."""

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
    """At the start of the service: what a shim may take to answer before it counts as slow. A slow one is kept, and
    asked again.
    """
    load_parallel: int = 16
    """Shims that are asked at once then."""
    state_timeout: Seconds = 2.0
    """What a shim may take to say the state of a process."""
    call_timeout: Seconds = 120.0
    """What a shim may take for anything else but Wait."""
    cleanup_timeout: Seconds = 5.0
    """What the cleaning up after a dead shim may take."""
    shutdown_timeout: Seconds = 3.0
    """What a shim may take to end when its task is deleted."""
    restart_interval: Seconds = 10.0
    """How often the restart monitor looks at containers labelled containerd.io/restart.status. Also read from
    [plugins."io.containerd.monitor.container.v1.restart"].
    """


_TIMEOUTS = {
    "io.containerd.timeout.shim.load": "load_timeout",
    "io.containerd.timeout.shim.cleanup": "cleanup_timeout",
    "io.containerd.timeout.shim.shutdown": "shutdown_timeout",
    "io.containerd.timeout.task.state": "state_timeout",
}

_RESTART = ("io.containerd.monitor.container.v1.restart", "io.containerd.internal.v1.restart")
"""The restart monitor's table, ``interval`` in it, since 2.0 and before."""


def load(file: settings.File) -> Config:
    """[tasks] of ``file``, then containerd's names in [timeouts] and its restart monitor's table."""
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
