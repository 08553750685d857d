"""Settings of the collector: table [metadata.gc], with containerd's names. containerd's own table
[plugins."io.containerd.gc.v1.scheduler"] is accepted as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from services.kit import errors, settings
from services.kit.settings import Seconds

_CONTAINERD = "io.containerd.gc.v1.scheduler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """When the metadata service collects garbage. Keys and defaults are those of containerd's gc scheduler."""

    pause_threshold: float = 0.02
    """Share of the metadata store's time that collections may take, estimated from past collections; at most 0.5."""
    deletion_threshold: int = 0
    """Number of deletions after which a collection no longer waits for its turn; 0: it always waits."""
    mutation_threshold: int = 100
    """Number of writes after which the next turn collects even if nothing was deleted; 0: it does not."""
    schedule_delay: Seconds = 0.0
    """Delay between a trigger of an immediate collection (a synchronous delete, the deletion threshold) and the
    collection.
    """
    startup_delay: Seconds = 0.1
    """Delay between the start of the service and the first collection; 0: the first deletion triggers the first
    collection.
    """

    def bounded(self) -> Config:
        """With every value within the bounds that containerd enforces."""
        return replace(
            self,
            pause_threshold=min(max(self.pause_threshold, 0.0), 0.5),
            mutation_threshold=max(self.mutation_threshold, 0),
            schedule_delay=max(self.schedule_delay, 0.0),
            startup_delay=max(self.startup_delay, 0.0),
        )


def load(file: settings.File) -> Config:
    """The settings in ``file``: those of containerd's table, overridden by ours."""
    plugins = file.tables.get("plugins", {})
    theirs: Any = plugins.get(_CONTAINERD, {}) if isinstance(plugins, dict) else {}
    ours = settings.load(Config, file, "metadata.gc")
    try:
        found = settings.load(Config, settings.File(file.path, {"scheduler": theirs}), "scheduler")
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument(str(error).replace("[scheduler]", f'[plugins."{_CONTAINERD}"]')) from None
    said: Any = file.tables.get("metadata", {}).get("gc", {})
    return replace(found, **{name: getattr(ours, name) for name in said}).bounded()
