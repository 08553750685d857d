"""Notes that the service keeps about its tasks, for itself alone. They are below STATE/tasks::

    sightings/NAMESPACE:ID      the data by which a task can be ended even without its bundle (dead_shim.py)
    exits/NAMESPACE:ID          empty; the exit of the task's init is known, so the next start does not publish it
    checkpoints/NAMESPACE:ID/   the image from which the task is restored
    checkpoints/checkpoint-*/   an image on its way to the content store
    boot                        the boot in which the service was started last

All notes about a task are removed with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from services.tasks import dead_shim
from services.tasks.bundle import Bundle
from services.tasks.dead_shim import Sighting


class Notes:
    """The directories above, below ``directory``. A task's bundle gives its name."""

    def __init__(self, directory: Path) -> None:
        self.checkpoints = directory / "checkpoints"
        self._sightings, self._exits = directory / "sightings", directory / "exits"
        self._boot = directory / "boot"

    def make(self) -> None:
        """Make the directories that do not exist."""
        for directory in (self._exits, self._sightings, self.checkpoints):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    # -- the boot

    def machine_has_rebooted(self) -> bool:
        """Return whether the machine has booted since :meth:`note_boot`. False if that is not known."""
        try:
            return self._boot.read_text() not in ("", _boot_id())
        except OSError:
            return False

    def note_boot(self) -> None:
        with contextlib.suppress(OSError):
            self._boot.write_text(_boot_id())

    # -- sightings

    def sighting(self, bundle: Bundle) -> Sighting | None:
        """The sighting of a task; None if there is none, or it is malformed."""
        return dead_shim.read(self._sightings / _name(bundle))

    def write_sighting(self, bundle: Bundle, seen: Sighting) -> None:
        seen.write(self._sightings / _name(bundle))

    def forget_sighting(self, bundle: Bundle) -> None:
        (self._sightings / _name(bundle)).unlink(missing_ok=True)

    def sighted(self) -> Iterator[tuple[str, str]]:
        """Namespace and name of each task that has a sighting, in order."""
        for path in sorted(self._sightings.iterdir()):
            namespace, _, name = path.name.partition(":")
            if not path.name.startswith("."):
                yield namespace, name

    # -- exits

    def exit_was_seen(self, bundle: Bundle) -> bool:
        return (self._exits / _name(bundle)).exists()

    def note_exit(self, bundle: Bundle) -> None:
        """If this fails the next start publishes the exit again, and the gateway drops it."""
        with contextlib.suppress(OSError):
            os.close(os.open(self._exits / _name(bundle), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))

    # -- checkpoints

    def checkpoint_of(self, bundle: Bundle) -> Path:
        """Make an empty directory for the image of a task; it stays as long as the task."""
        self.forget_checkpoint(bundle)
        path = self.checkpoints / _name(bundle)
        path.mkdir(mode=0o700)
        return path

    def forget_checkpoint(self, bundle: Bundle) -> None:
        path = self.checkpoints / _name(bundle)
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)

    # -- all of them

    def forget(self, bundle: Bundle) -> None:
        """Remove the exit and the checkpoint of a task."""
        (self._exits / _name(bundle)).unlink(missing_ok=True)
        self.forget_checkpoint(bundle)

    def remove_orphans(self, bundles: Path, kept: Collection[tuple[str, str]]) -> None:
        """Remove the exits and checkpoints of tasks that have no bundle below ``bundles``, nor are ``kept``."""

        def is_orphan(path: Path) -> bool:
            namespace, _, name = path.name.partition(":")
            return (namespace, name) not in kept and not (bundles / namespace / name).exists()

        for mark in filter(is_orphan, self._exits.iterdir()):
            mark.unlink(missing_ok=True)
        for image in filter(is_orphan, self.checkpoints.iterdir()):
            shutil.rmtree(image, ignore_errors=True)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def _name(bundle: Bundle) -> str:
    return f"{bundle.namespace}:{bundle.id}"
