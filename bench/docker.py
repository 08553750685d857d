"""``docker save`` through dockerd with its images in containerd: thousands of Reads of 32 KiB, one after the other,
since this is how dockerd reads a layer.

dockerd uses containerd's image store only if it is configured to, from version 24 on. Debian 12 has an older one, so
the row needs another (``--dockerd DIR``, or the first in PATH).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.peers import Peer

SAVE = "docker save"
SIZE_MIB = 115
_IMAGE = "bench-save"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Docker:
    """A dockerd on top of a peer, and its client."""

    client: str
    socket: Path

    def run(self, *arguments: str, stdin: IO[bytes] | int = subprocess.DEVNULL) -> None:
        """Run a docker command. Its output is dropped; its error is the benchmark's."""
        done = subprocess.run(
            [self.client, "--host", f"unix://{self.socket}", *arguments],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr.strip()}")


def programs(directory: Path | None) -> tuple[str, str] | None:
    """dockerd 24 or newer and its client: those in ``directory`` (DIR, DIR/usr/sbin and DIR/usr/bin), or in PATH."""
    path = (
        os.pathsep.join(str(directory / below) for below in (".", "usr/sbin", "usr/bin"))
        if directory is not None
        else None
    )
    dockerd, client = shutil.which("dockerd", path=path), shutil.which("docker", path=path)
    if not dockerd or not client:
        return None
    said = re.search(
        r"version (\d+)\.", subprocess.run([dockerd, "--version"], capture_output=True, text=True, check=False).stdout
    )
    return (dockerd, client) if said and int(said[1]) >= 24 else None


@contextlib.contextmanager
def dockerd(peer: Peer, found: tuple[str, str], directory: Path) -> Iterator[Docker]:
    """A dockerd with all its files in ``directory``, no network, and an image of 115 MiB that does not compress."""
    daemon, client = found
    directory.mkdir(parents=True)
    socket, config, log = directory / "d.sock", directory / "config.json", directory / "log"
    config.write_text(json.dumps({"features": {"containerd-snapshotter": True}, "userland-proxy": False}))
    command = [
        daemon,
        "--config-file",
        str(config),
        "--containerd",
        str(peer.socket),
        "--data-root",
        str(directory / "root"),
        "--exec-root",
        str(directory / "exec"),
        "--pidfile",
        str(directory / "pid"),
        "--host",
        f"unix://{socket}",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        docker = Docker(client, socket)
        _wait(docker, process, log)
        with _layer(directory / "layer.tar") as layer:
            docker.run("import", "-", _IMAGE, stdin=layer)
        yield docker
        docker.run("image", "rm", _IMAGE)
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def _layer(path: Path) -> Iterator[IO[bytes]]:
    """A tar with one file."""
    content = path.with_name("content")
    with content.open("wb") as file:
        for i in range(SIZE_MIB * _MIB // 32):
            file.write(hashlib.sha256(i.to_bytes(4, "big")).digest())
    subprocess.run(["tar", "--directory", str(path.parent), "-cf", str(path), content.name], check=True)
    with path.open("rb") as file:
        yield file
    path.unlink()
    content.unlink()


def _wait(docker: Docker, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            docker.run("version")
        except RuntimeError as error:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"dockerd does not answer: {error}:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.1)
        else:
            return


def save(docker: Docker) -> float:
    """s: ``docker save`` to /dev/null."""
    start = time.perf_counter()
    docker.run("save", _IMAGE)
    return time.perf_counter() - start
