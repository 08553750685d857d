"""The daemons that are compared: Debian's containerd, containerd 2 if there is one, and a node, each with a root of its
own on a loop-mounted xfs. The state directories, and runc's, are in memory, where they are on a machine whose /run is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
RUN = Path("/run/containerd")
_NEWNS = 0x00020000
"""CLONE_NEWNS"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A daemon under test: its name, its socket, the arguments by which its processes are found, and the ctr that
    drives it. ``snapshotter`` unpacks its pulls; "": ctr's default.
    """

    name: str
    socket: Path
    marks: tuple[str, ...]
    ctr: str = "ctr"
    snapshotter: str = ""

    @property
    def chosen(self) -> list[str]:
        """The flags of ctr that choose the snapshotter."""
        return ["--snapshotter", self.snapshotter] if self.snapshotter else []

    def pids(self) -> list[int]:
        """Its processes: those with one of ``marks`` among their arguments, except shims."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    mine = any(a == m or a.startswith(m + "/") for a in arguments for m in self.marks)
                    if mine and "containerd-shim" not in arguments[0] and int(entry.name) != os.getpid():
                        found.append(int(entry.name))
        return found

    def pss_mb(self) -> float:
        """Proportional set size of all its processes together, in MB (1e6 bytes)."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                line = next(
                    x for x in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if x.startswith("Pss:")
                )
                total += int(line.split()[1]) * 1024
        return total / 1e6


@contextlib.contextmanager
def xfs(image: Path, mount_point: Path, size_gib: int = 8) -> Iterator[Path]:
    """A new xfs on a sparse file, mounted."""
    image.parent.mkdir(parents=True, exist_ok=True)
    mount_point.mkdir(parents=True, exist_ok=True)
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size_gib << 30)
    subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount_point)], check=True)
    try:
        yield mount_point
    finally:
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            point = line.split()[4]
            if point.startswith(f"{mount_point}/"):
                subprocess.run(["umount", "-l", point], check=False)
        subprocess.run(["umount", "-l", str(mount_point)], check=True)
        image.unlink()


@contextlib.contextmanager
def _state(directory: Path) -> Iterator[Path]:
    """``directory/state``, in memory. The defaults of both daemons are below /run, which systemd has in memory."""
    made = directory / "state"
    made.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0711", "bench", str(made)], check=True)
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(made)], check=True)


def run_in_memory() -> None:
    """Have /run/containerd in memory, where ctr's FIFOs and the shims' sockets are, and containerd's runc has its state
    (a node's has it in STATE). If it is not, this process and its children get one of their own.
    """
    RUN.mkdir(mode=0o711, exist_ok=True)
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(RUN)], capture_output=True, text=True, check=True).stdout
    if kind.strip() == "tmpfs":
        return
    if ctypes.CDLL(None, use_errno=True).unshare(_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0711", "bench", str(RUN)], check=True)


@contextlib.contextmanager
def tmpfs(size_gib: int = 4) -> Iterator[Path]:
    """A directory in memory."""
    with tempfile.TemporaryDirectory(prefix="bm", dir="/tmp") as made:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_gib}g", "bench", made], check=True)
        try:
            yield Path(made)
        finally:
            subprocess.run(["umount", "-l", made], check=True)


def version(directory: Path | None = None) -> tuple[int, int] | None:
    """Major and minor version of the containerd in ``directory``, or in PATH. None if there is none that tells its
    version.
    """
    program = shutil.which("containerd", path=str(directory) if directory is not None else None)
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout if program else ""
    found = re.search(r" v?(\d+)\.(\d+)\.", said)
    return (int(found[1]), int(found[2])) if found else None


def containerd_2() -> Path | None:
    """The first directory of PATH with a containerd 2 and a ctr."""
    for directory in map(Path, os.get_exec_path()):
        if (directory / "ctr").exists() and (version(directory) or (0, 0)) >= (2, 0):
            return directory
    return None


@contextlib.contextmanager
def containerd(directory: Path, programs: Path | None = None, more: str = "", path: str = "") -> Iterator[Peer]:
    """Debian's containerd, or the one in ``programs`` with the ctr beside it. CRI is disabled; all else is the
    default, but for ``more`` of its configuration. ``path`` is searched for programs before PATH.
    """
    with _state(directory) as state:
        socket, config = state / "c.sock", directory / "config.toml"
        cri = (
            ["io.containerd.grpc.v1.cri"]
            if programs is None
            else ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
        )
        config.write_text(
            f'version = 2\nroot = "{directory}/root"\nstate = "{state}"\ndisabled_plugins = {cri}\n'
            f'[grpc]\naddress = "{socket}"\n{more}'
        )
        search = ":".join([*filter(None, (path, str(programs or ""))), os.environ["PATH"]])
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(programs / "containerd") if programs else "containerd", "-c", str(config)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": search},
            )
        try:
            _wait(socket, directory / "log")
            yield Peer("containerd", socket, (str(config),), str(programs / "ctr") if programs else "ctr")
        finally:
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def splitd(directory: Path, checkout: Path = TOP, config: str = "") -> Iterator[Peer]:
    """A node, started by ``splitd up`` of a clone of this repository, with the modules of the clone's .venv or else of
    this one, and with the Python that the package has. ``config`` is the text of its configuration file.
    """
    with _state(directory) as state:
        where = ["--root", str(directory / "root"), "--state", str(state)]
        file = directory / "config.toml"
        file.write_text(config)
        chosen = ["--config", str(file)] if config else []
        theirs = checkout.resolve() / ".venv/bin/python"
        python = delivered(str(theirs) if theirs.exists() else sys.executable, directory / "python")
        # the record of how it was started is removed with it
        environment = {**os.environ, "SPLITD_NODES": str(directory / "nodes")}
        try:
            subprocess.run(
                [python, "-m", "deploy", "up", *where, *chosen],
                cwd=checkout,
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            yield Peer("splitd", state / "containerd.sock", (str(state),))
        finally:
            subprocess.run(
                [python, "-m", "deploy", "down", "--containers", *where],
                cwd=checkout,
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )


def delivered(python: str, made: Path) -> str:
    """The Python that splitd's package runs on, Debian's, with the modules of ``python``, in an environment at
    ``made``; ``python`` itself where Debian's is not there, in that version. With a Python that is built without
    optimization, as pyenv does it, a node takes up to a sixth more of a processor.
    """
    said = subprocess.run(
        [
            python,
            "-c",
            "import sys, sysconfig; print(*sys.version_info[:2], sys.base_prefix, sysconfig.get_path('platlib'))",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    major, minor, base, modules = said.split(maxsplit=3)
    name = f"python{major}.{minor}"
    system = Path("/usr/bin", name)
    if base == "/usr" or not system.exists():
        return python
    if not made.exists():
        subprocess.run([str(system), "-m", "venv", "--without-pip", str(made)], check=True)
        (made / "lib" / name / "site-packages/modules.pth").write_text(modules)
    return str(made / "bin/python")


def _wait(socket: Path, log: Path) -> None:
    end = time.monotonic() + 20
    while subprocess.run(["ctr", "-a", str(socket), "version"], capture_output=True, check=False).returncode:
        if time.monotonic() > end:
            raise RuntimeError(f"{socket} does not answer:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
