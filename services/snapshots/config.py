"""Settings of the snapshots service: table [snapshots]."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.kit.settings import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlayfs:
    """The snapshotter overlayfs; the keys are containerd's."""

    mount_options: tuple[str, ...] = ()
    """Options added to each overlay, not to binds; ``index`` and ``userxattr`` are added where the kernel wants them, unless they are here."""
    upperdir_label: bool = False
    """Show each snapshot's directory as its label containerd.io/snapshot/overlay.upperdir."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The snapshots service: filesystems made of layers, and their diffs."""

    sync_commit: bool = True
    """A snapshot is committed when its files are on the disk, so that an image that was pulled survives a power cut. false: a pull waits for no file, as containerd's; after a power cut files of layers may be empty, and
    nothing notices."""
    sync_remove: bool = False
    """A removal returns when the files are gone, not when the snapshot is."""
    grace: Seconds = 5.0
    """How long calls may go on after the service was told to stop."""
    overlayfs: Overlayfs = field(default_factory=Overlayfs)
