"""The programs that the interop tests start: ours, one for each transport, and those in Go, which ``make`` builds
from tests/interop/peers.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from services.kit import rpc
from tests.support import TOP, eventually

TRANSPORTS = rpc.TRANSPORTS


def go_program(name: str) -> str:
    """Return the path of ``client``, ``server``, ``chat`` or ``h2spec``."""
    path = Path(sys.prefix) / "peers" / name
    assert path.exists(), f"{path} is not there: make peers"
    return str(path)


@contextlib.contextmanager
def our_server(transport: str, directory: Path) -> Iterator[str]:
    """The address of tests.interop.server, which must end with exit code 0 and log no traceback."""
    with _running(
        [sys.executable, "-m", "tests.interop.server", "127.0.0.1:0"],
        directory / f"{transport}.log",
        r"\S+:\d+(?=\n)",
        SPLITD_GRPC_TRANSPORT=transport,
    ) as (process, address):
        yield address
    log = (directory / f"{transport}.log").read_text()
    assert process.returncode == 0, f"it ended with {process.returncode}:\n{log}"
    assert "Traceback" not in log, log


@contextlib.contextmanager
def go_server(directory: Path) -> Iterator[str]:
    """The address of grpc-go's interop server."""
    with _running(
        [go_program("server"), "-port=0"],
        directory / "go.log",
        r"(?<=listening on \[::\]):\d+",
        GRPC_GO_LOG_SEVERITY_LEVEL="info",
    ) as (_, port):
        yield f"127.0.0.1{port}"


@contextlib.contextmanager
def _running(command: list[str], log: Path, says: str, **env: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a program; yield the part of its log that matches ``says``, which shows that it listens. SIGTERM ends it."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=TOP, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )

    def said() -> re.Match[str] | None:
        if process.poll() is not None:
            raise RuntimeError(f"{command} ended with {process.returncode}:\n{log.read_text()}")
        return re.search(says, log.read_text())

    try:
        found = eventually(said, f"{command} does not listen")
        assert found is not None
        yield process, found.group()
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
