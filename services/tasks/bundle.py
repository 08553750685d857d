"""The directory of a task, laid out as containerd does, since shims and operators' tools know it::

    STATE/io.containerd.runtime.v2.task/NAMESPACE/ID/
        config.json         the OCI spec, byte for byte as the container's record has it
        rootfs/             where the shim mounts the root filesystem
        layers/             where layers are mounted for a shim that does not mount them itself
        work -> ROOT/io.containerd.runtime.v2.task/NAMESPACE/ID
        log                 a FIFO that the shim logs to
        shim-binary-path    the shim's program, written before it is started, so that it can clean up in any case
        bootstrap.json      how to reach the shim: protocol, address, version of its task API. It is absent if the shim
                            was not started
        deleted             ours: how the task ended. A client was told that it is deleted, and its shim is being ended
        address, init.pid, options.json, runtime ...    files of the shim's own

To delete a bundle it is renamed to a hidden name first, so that a half deleted one is never taken for a task.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.kit import errors, gojson, identifiers, mounting
from services.kit.gojson import INTEGER, TEXT, Struct
from services.tasks import spec as specs
from services.tasks.store import Exit

TASKS = "io.containerd.runtime.v2.task"


@dataclass(frozen=True, slots=True)
class Address:
    """How to reach a shim: ``ttrpc`` or ``grpc``, at ``unix://PATH`` (or an abstract socket's bare name), with task
    API 2 or 3.
    """

    protocol: str
    address: str
    version: int


_ADDRESS = Struct({"version": INTEGER, "address": TEXT, "protocol": TEXT})


def address_of(data: bytes) -> Address | None:
    """The address in the JSON of a ``bootstrap.json``, which shims print too; None if there is none in it."""
    try:
        found = gojson.read(data, _ADDRESS)
    except gojson.Malformed:
        return None
    return (
        Address(found["protocol"], found["address"], found["version"])
        if found.get("protocol") and found.get("address") and found.get("version")
        else None
    )


LAYERS = "layers"
"""The directory in a bundle on which layers are mounted that the root file system stands on (``layers.py``)."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The directory of one task. It need not exist."""

    namespace: str
    id: str
    path: Path
    work: Path

    @classmethod
    def of(cls, root: Path, state: Path, namespace: str, name: str) -> Bundle:
        return cls(namespace, name, state / TASKS / namespace / name, root / TASKS / namespace / name)

    def validate(self) -> None:
        """InvalidArgument, in containerd's words, if the name is no identifier."""
        try:
            identifiers.validate(self.id)
        except errors.InvalidArgument as error:
            raise errors.InvalidArgument.verbatim(f"invalid task id {self.id}: {error}") from None

    def create(self, spec: bytes | None, *, gid: int = 0) -> None:
        """Make the directories and write the spec. ``gid`` is the group that the user namespace maps its root to; it
        gets access.
        """
        self.validate()
        for directory in (*reversed(self.path.parents[:2]), *reversed(self.work.parents[:2])):
            _mkdir(directory, 0o711, exist_ok=True)
        _mkdir(self.path, 0o700)
        try:
            if gid:
                os.chown(self.path, -1, gid)
                os.chmod(self.path, 0o710)  # noqa: S103 as containerd does
            _mkdir(self.path / "rootfs", 0o711)
            try:
                _mkdir(self.work, 0o711)
            except FileExistsError:
                shutil.rmtree(self.work)
                _mkdir(self.work, 0o711)
            os.symlink(self.work, self.path / "work")
            if spec is not None:
                (self.path / "config.json").write_bytes(spec)
        except BaseException as error:
            self.delete()
            raise (errors.of_machine(error, f"failed to create bundle {self.path}") or error) from None

    def delete(self) -> None:
        """Unmount the root filesystem and remove the bundle, as far as it exists. Files *in* a root filesystem are
        never removed.
        """
        rootfs = self.path / "rootfs"
        if self.path.exists():
            _unmount(rootfs)
            if (layers := self.path / LAYERS).exists():
                _unmount_below(layers)
            try:
                rootfs.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                _unmount_below(rootfs)
                rootfs.rmdir()
            _remove(self.path)
        _remove(self.work)

    def mounted(self) -> bool:
        """Return whether the root filesystem is mounted; to unmount it may take long. It is not asked itself, as
        stat(2) would: one that hangs would keep the caller.
        """
        try:
            return _mount_id(self.path / "rootfs") != _mount_id(self.path)
        except FileNotFoundError:
            return False

    # -- what is remembered about the shim

    @property
    def log(self) -> Path:
        return self.path / "log"

    def write_program(self, program: str) -> None:
        """Write down the shim's program."""
        _write(self.path / "shim-binary-path", program, 0o600)

    def program(self) -> str:
        """The shim's program, or an empty string."""
        try:
            return (self.path / "shim-binary-path").read_text()
        except FileNotFoundError:
            return ""

    def write_address(self, address: Address) -> None:
        """Write down how to reach the shim."""
        fields = {"version": address.version, "address": address.address, "protocol": address.protocol}
        _write(self.path / "bootstrap.json", json.dumps(fields, separators=(",", ":")), 0o644)

    def read_address(self) -> Address | None:
        """How to reach the shim; None if that was never written. Shims before 1.7 leave a bare ``address``, which
        containerd reads too.

        DataLoss if the files that should have the address do not. This says nothing about the shim, which may run.
        """
        damaged = None
        try:
            if (found := address_of((self.path / "bootstrap.json").read_bytes())) is not None:
                return found
            damaged = self.path / "bootstrap.json"
        except FileNotFoundError:
            pass
        try:
            text = (self.path / "address").read_text(errors="replace").strip()
        except FileNotFoundError:
            text = ""
        else:
            damaged = damaged or self.path / "address"
        if not text and damaged is not None:
            raise errors.DataLoss(f"{damaged}: no address of a shim is in it")
        return Address("ttrpc", text, 2) if text else None

    def readable_address(self) -> Address | None:
        """As :meth:`read_address`, but None also for an address that cannot be read."""
        with contextlib.suppress(errors.DataLoss, OSError):
            return self.read_address()
        return None

    def write_deletion(self, how: Exit) -> None:
        """Write down that the task is deleted, and how it ended. If that fails, the next start of the service finds a
        shim without a task, and undoes it.
        """
        with contextlib.suppress(OSError):
            (self.path / "deleted").write_text(f"{how.status} {how.at or 0} {how.pid}")

    def deletion(self) -> Exit | None:
        """How the task ended, if it was deleted; None if it was not."""
        try:
            text = (self.path / "deleted").read_text()
        except FileNotFoundError:
            return None
        try:
            status, at, pid = map(int, text.split())
        except ValueError:  # the service was killed before it was written
            return Exit(0, None)
        return Exit(status, at or None, pid)

    def spec(self) -> dict[str, Any]:
        """The OCI spec; empty if there is none, or it cannot be read."""
        try:
            return specs.read((self.path / "config.json").read_bytes())
        except (OSError, errors.Unknown):
            return {}

    def init_pid(self) -> int:
        """The pid that the shim wrote down for the task's init; 0 if there is none."""
        try:
            return int((self.path / "init.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0


def _mkdir(path: Path, mode: int, *, exist_ok: bool = False) -> None:
    try:
        path.mkdir(mode, parents=exist_ok)
    except FileExistsError:
        if not exist_ok:
            raise


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file by a rename: after a crash a reader finds the old or the new text, whole."""
    temporary = path.with_name(f".{path.name}")
    # open() goes on where a single write() writes only a part
    with open(temporary, "w", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(text)
    os.rename(temporary, path)


def _remove(path: Path) -> None:
    hidden = path.with_name(f".{path.name}")
    if hidden.exists():
        shutil.rmtree(hidden)
    try:
        path.rename(hidden)
    except FileNotFoundError:
        return
    shutil.rmtree(hidden)


def _unmount(rootfs: Path) -> None:
    """Unmount everything at or below ``rootfs``. The common case, one mount or none, costs one call and does not read
    the mount table.
    """
    while True:
        try:
            mounting.unmount(rootfs)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno != errno.EBUSY:
                raise _unmount_error(error, f"rootfs {rootfs}") from None
            _unmount_below(rootfs)
            try:
                mounting.unmount(rootfs, mounting.DETACH)
            except OSError as still:
                raise _unmount_error(still, f"rootfs {rootfs}") from None


def _unmount_below(directory: Path) -> None:
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")
        if point.startswith(f"{directory}/"):
            points.append(point)
    for point in sorted(points, key=len, reverse=True):
        try:
            mounting.unmount(point, mounting.DETACH)
        except OSError as error:
            raise _unmount_error(error, point) from None


def _unmount_error(error: OSError, place: str) -> OSError:
    return OSError(error.errno, f"unmount {place}: {error.strerror}")


def _mount_id(directory: Path) -> str:
    """The number of the mount that a directory is in."""
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    finally:
        os.close(fd)
    return next(line for line in lines if line.startswith("mnt_id:"))
