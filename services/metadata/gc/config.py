"""Settings of the collector: table [metadata.gc], in containerd's names, which accepts
[plugins."io.containerd.gc.v1.scheduler"] as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from services.kit import errors, settings
from services.kit.settings import Seconds

_CONTAINERD = "io.containerd.gc.v1.scheduler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """When the metadata service collects garbage; the same keys and defaults as containerd's gc scheduler."""

    pause_threshold: float = 0.02
    """Share of the time that collections may take from the metadata store, from what they took so far; 0.5 at most."""
    deletion_threshold: int = 0
    """After so many deletions a collection does not wait for its turn; 0: it always does."""
    mutation_threshold: int = 100
    """After so many writes the next turn collects even if nothing was deleted; 0: it does not."""
    schedule_delay: Seconds = 0.0
    """From what triggers a collection at once (a synchronous delete, the deletion threshold) to the collection."""
    startup_delay: Seconds = 0.1
    """From the start of the service to the first collection; 0: the first is that of the first deletion."""

    def bounded(self) -> Config:
        """With every value in the bounds that containerd enforces."""
        return replace(
            self,
            pause_threshold=min(max(self.pause_threshold, 0.0), 0.5),
            mutation_threshold=max(self.mutation_threshold, 0),
            schedule_delay=max(self.schedule_delay, 0.0),
            startup_delay=max(self.startup_delay, 0.0),
        )


def load(file: settings.File) -> Config:
    """The settings in ``file``: those of containerd's table, and over them ours."""
    plugins = file.tables.get("plugins", {})
    theirs: Any = plugins.get(_CONTAINERD, {}) if isinstance(plugins, dict) else {}
    ours = settings.load(Config, file, "metadata.gc")
    try:
        found = settings.load(Config, settings.File(file.path, {"scheduler": theirs}), "scheduler")
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument(str(error).replace("[scheduler]", f'[plugins."{_CONTAINERD}"]')) from None
    said: Any = file.tables.get("metadata", {}).get("gc", {})
    return replace(found, **{name: getattr(ours, name) for name in said}).bounded()
