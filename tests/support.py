"""Helpers for all tiers of tests: short directories, polling with a deadline, a process of one service, a whole node,
ctr.

Import as ``from tests.support import ...``; the fixtures are in tests/conftest.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from api.grpc.health.v1 import health_pb2, health_stubs
from deploy import health as health_of_nodes
from deploy.place import Place
from deploy.supervision import NotUp, Supervisor
from services.kit import errors, rpc
from tests import copies

T = TypeVar("T")
TOP = Path(__file__).resolve().parent.parent
"""The repository: the working directory and import path of the processes that tests start."""


# ------------------------------------------------------------------------------------------ waiting


def eventually(condition: Callable[[], T | None], why: str = "", seconds: float = 15.0) -> T:
    """The first true answer of ``condition``, which is polled every 20 ms, or after as long a pause as it takes: what is
    waited for needs the processor, too. An AssertionError with ``why`` after ``seconds``.

    An AssertionError or OSError of ``condition`` counts as not yet, and is part of the final message.
    """
    end = time.monotonic() + seconds
    while True:
        last: object = None
        begun = time.monotonic()
        try:
            if found := condition():
                return found
        except (AssertionError, OSError) as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {why or condition}" + (f" ({last})" if last else ""))
        time.sleep(min(max(0.02, time.monotonic() - begun), 0.3))


async def eventually_async(condition: Callable[[], Awaitable[T | None]], why: str = "", seconds: float = 15.0) -> T:
    """As :func:`eventually`, for a coroutine function."""
    end = time.monotonic() + seconds
    while True:
        last: object = None
        begun = time.monotonic()
        try:
            if found := await condition():
                return found
        except (AssertionError, OSError) as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {why or condition}" + (f" ({last})" if last else ""))
        await asyncio.sleep(min(max(0.02, time.monotonic() - begun), 0.3))


@contextlib.contextmanager
def within(seconds: float, at_least: float = 0.0) -> Iterator[None]:
    """The block takes at most ``seconds`` (by the steady clock: a machine that stops takes no time) and at least
    ``at_least`` (by the machine's own clock).
    """
    begun, really = time.monotonic(), time.perf_counter()
    yield
    took, all_of_it = time.monotonic() - begun, time.perf_counter() - really
    assert took <= seconds, f"{took:.2f} s; it may take {seconds:g} s"
    assert all_of_it >= at_least, f"{all_of_it:.2f} s; it takes {at_least:g} s at the least"


# ------------------------------------------------------------------------------------------ places


def mounts_below(directory: Path) -> list[str]:
    """Mount points at or below ``directory``, deepest first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point == str(directory) or point.startswith(f"{directory}/"):
            points.append(point)
    return sorted(points, key=len, reverse=True)


def remove(directory: Path) -> None:
    """Delete a tree with everything that a container may have left mounted in it."""
    for point in mounts_below(directory):
        subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)
    left = mounts_below(directory)
    assert not left, f"still mounted: {left}"
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def short_directory(on: Path | None = None) -> Iterator[Path]:
    """A new directory whose path leaves room for socket names (107 bytes); it is removed afterwards. ``on`` puts it on
    another disk than the other tests'.
    """
    directory = Path(tempfile.mkdtemp(prefix="sp", dir=on or os.environ.get("SPLITD_TEST_DIR", "/tmp")))
    try:
        yield directory
    finally:
        remove(directory)


@contextlib.contextmanager
def directory_with_attributes(on: Path | None = None) -> Iterator[Path]:
    """As :func:`short_directory`, on a file system with extended attributes of users: tmpfs has them from Linux 6.6 on
    only, so it may be on the disk instead.
    """
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(short_directory(on))
        try:
            os.setxattr(directory, "user.test", b"")
        except OSError:
            directory = stack.enter_context(short_directory(Path("/tmp")))
        yield directory


@contextlib.contextmanager
def loop_disk(filesystem: str) -> Iterator[Path]:
    """An empty file system of this kind, mounted from a loop device; both are removed afterwards."""
    with short_directory() as directory:
        image, at = directory / "image", directory / "d"
        with image.open("wb") as file:
            file.truncate(4 << 30)
        at.mkdir()
        subprocess.run([f"mkfs.{filesystem}", "-q", str(image)], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", "-t", filesystem, "-o", "loop", str(image), str(at)], check=True)
        yield at


BLKIO = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")


@contextlib.contextmanager
def slow_disk(at: Path, rate: int) -> Iterator[None]:
    """The disk of a mounted file system takes ``rate`` bytes a second. Skips the test where there is no cgroup v1."""
    if not BLKIO.exists():
        pytest.skip("no cgroup v1 to slow down a disk with")
    device = os.stat(at).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    BLKIO.write_text(f"{number} {rate}")
    try:
        yield
    finally:
        BLKIO.write_text(f"{number} 0")


@contextlib.contextmanager
def frozen_disk(at: Path) -> Iterator[None]:
    """A mounted file system takes no writes."""
    subprocess.run(["fsfreeze", "-f", str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", str(at)], check=True)


def listening(path: Path) -> bool:
    """Whether a process accepts connections on a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


async def health(path: Path, service: str = "") -> int:
    """The health that the process on ``path`` reports for ``service`` ("" is the whole), as a ServingStatus number."""
    async with rpc.Channel(path) as channel:
        client = channel.client(health_stubs.HEALTH)
        response = await client.Check(health_pb2.HealthCheckRequest(service=service), timeout=5.0)
        return int(response.status)


async def reaches(gateway: Path, *services: str, seconds: float = 30.0) -> None:
    """Wait until a gateway that started before these services is connected to them: it holds a call for some seconds
    after its start only.
    """

    async def all_serve() -> bool:
        return {await health(gateway, name) for name in services} == {health_pb2.HealthCheckResponse.SERVING}

    await eventually_async(all_serve, f"the gateway does not reach all of {', '.join(services)}", seconds)


def freeze(pid: int) -> None:
    """SIGSTOP a process, and wait until all its threads are stopped: the signal takes a moment to reach them, in which
    one may still answer.
    """
    os.kill(pid, signal.SIGSTOP)

    def stopped() -> bool:
        return all(
            stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in Path(f"/proc/{pid}/task").glob("*/stat")
        )

    eventually(stopped, f"process {pid} does not stop")


# ------------------------------------------------------------------------------------------ one service


class ServiceProcess:
    """``python -m MODULE --root ROOT --state STATE``, started alone and at once; a context manager that ends it.

    ``sockets`` are names below the state directory that must accept connections before the constructor returns. The log
    goes to ``STATE/MODULE.log``. It is a copy (tests/copies.py), unless ``copied`` is False, for what is not the same in one:
    its memory.
    """

    def __init__(
        self,
        module: str,
        root: Path,
        state: Path,
        *,
        sockets: tuple[str, ...] = (),
        config: Path | None = None,
        env: Mapping[str, str] | None = None,
        seconds: float = 20.0,
        copied: bool = True,
    ) -> None:
        self.module, self.root, self.state, self.config = module, root, state, config
        self.sockets = [state / name for name in sockets or (module.rpartition(".")[2] + ".sock",)]
        self.env = {**os.environ, "PYTHONPATH": str(TOP), **(env or {})}
        self.log = state / f"{module}.log"
        state.mkdir(parents=True, exist_ok=True)
        self._start = copies.start if copied else copies.execute
        self._process: copies.Copy | subprocess.Popen[bytes] | None = None
        self.start(seconds)

    def start(self, seconds: float = 20.0) -> None:
        """Start it and wait until its sockets accept connections."""
        with self.log.open("ab") as log, open(os.devnull, "rb") as nothing:
            self._process = self._start(self.command(), self.env, nothing.fileno(), log.fileno(), log.fileno())

        def up() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.module} ended with {self._process.returncode}:\n{self.text()}")
            return all(listening(path) for path in self.sockets)

        try:
            eventually(up, f"{self.module} does not listen:\n{self.text()}", seconds)
        except BaseException:
            self.kill()
            raise

    def command(self) -> list[str]:
        """Its command line."""
        config = [] if self.config is None else ["--config", str(self.config)]
        return [sys.executable, "-m", self.module, "--root", str(self.root), "--state", str(self.state), *config]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def text(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL it, as a power cut or the OOM killer would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, seconds: float = 20.0) -> int:
        """SIGTERM it; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.module} did not end within {seconds:g} s of SIGTERM:\n{self.text()}") from None

    def wait(self, seconds: float = 20.0) -> int:
        """Wait until it ends by itself; returns the exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()


class OwnService(ServiceProcess):
    """A program made with ``splitd.service``, such as one of examples/: its files are in ``directory``/r, its socket is
    ``directory``/s/PROGRAM.sock.
    """

    def __init__(self, program: Path, directory: Path, *words: str, env: Mapping[str, str] | None = None) -> None:
        self.program, self.words = program, words
        super().__init__(program.stem, directory / "r", directory / "s", sockets=(f"{program.stem}.sock",), env=env)

    def command(self) -> list[str]:
        where = ["--root", str(self.root), "--address", str(self.sockets[0])]
        return [sys.executable, str(self.program), *where, *self.words]


# ------------------------------------------------------------------------------------------ a node


def splitd(
    *arguments: str | Path, env: Mapping[str, str] | None = None, seconds: float = 90.0, ok: bool | None = True
) -> subprocess.CompletedProcess[str]:
    """Run the splitd command. If ``ok`` is True its exit code must be 0, if False it must not be."""
    command = [sys.executable, "-m", "deploy", *map(str, arguments)]
    done = copies.run(command, {**os.environ, **(env or {})}, seconds)
    expect(command, done, ok)
    return done


def expect(command: list[str], done: subprocess.CompletedProcess[Any], ok: bool | None) -> None:
    """An AssertionError with what it said, unless the exit code is as expected."""
    if ok is not None and ok != (done.returncode == 0):
        raise AssertionError(
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout!s}{done.stderr!s}"
        )


class Node:
    """A node below a short directory, run as an operator does: by ``splitd up`` and ``splitd down``."""

    def __init__(self, directory: Path, *, config: str = "", env: Mapping[str, str] | None = None) -> None:
        self.root, self.state = directory / "root", directory / "state"
        self.socket = self.state / "containerd.sock"
        self.env = dict(env or {})
        # for nodes outside pytest, such as a measurement's: pytest sets a directory for all its nodes
        if "SPLITD_NODES" not in os.environ:
            self.env.setdefault("SPLITD_NODES", str(directory / "nodes"))
        self.config: Path | None = None
        if config:
            self.config = directory / "config.toml"
            self.config.write_text(config)

    def splitd(
        self, verb: str, *arguments: str, ok: bool | None = True, seconds: float = 90.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb of the splitd command for this node."""
        where: list[str | Path] = ["--root", self.root, "--state", self.state]
        if self.config is not None:
            where += ["--config", self.config]
        return splitd(verb, *where, *arguments, env=self.env, ok=ok, seconds=seconds)

    def up(self) -> None:
        self.splitd("up")

    def down(self, *, containers: bool = True) -> None:
        """Stop the node; with ``containers`` its tasks too."""
        self.splitd("down", *(["--containers", "--grace", "0"] if containers else []))

    def status(self) -> dict[str, Any]:
        """The answer of ``splitd status --json``, healthy or not."""
        found: dict[str, Any] = json.loads(self.splitd("status", "--json", ok=None).stdout)
        return found

    def pid(self, service: str) -> int:
        """The process id of a service; 0 if it does not run."""
        return self.pids()[service]

    def pids(self) -> dict[str, int]:
        """The process id of every service; 0 if it does not run. supervisord is asked directly: a splitd command takes
        half a second, and tests ask often.
        """
        return {name: status.pid for name, status in self._supervisor().processes().items()}

    def supervisord(self) -> int:
        """The process id of supervisord itself."""
        return self._supervisor().pid()

    def _supervisor(self) -> Supervisor:
        return Supervisor(self._place())

    def _place(self) -> Place:
        return Place(self.root, self.state, self.config)

    def with_grpc(self) -> list[str]:
        """The services whose process has imported grpc, so that its library is mapped."""
        return [name for name, pid in self.pids().items() if "cygrpc" in Path(f"/proc/{pid}/maps").read_text()]

    def kill(self, service: str) -> int:
        """kill -9 a service, which supervisord starts again. Returns the pid that died."""
        pid = self.pid(service)
        assert pid, f"{service} does not run"
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_healthy(self, seconds: float = 15.0) -> None:
        """Wait until every service runs and reports health. This process asks them, as ``splitd up`` does: each
        ``splitd status`` would take half a second of a processor that they need.
        """
        with ThreadPoolExecutor(1) as thread, contextlib.suppress(NotUp):  # a test may have an event loop of its own
            thread.submit(health_of_nodes.wait, self._place(), seconds).result()
        eventually(lambda: self.status()["healthy"], "the node is not healthy", seconds)

    def ctr(
        self,
        *arguments: object,
        namespace: str = "default",
        ok: bool | None = True,
        program: str = "ctr",
        stdin: str | bytes | None = None,
        seconds: float = 120.0,
        text: bool = True,
    ) -> subprocess.CompletedProcess[Any]:
        """Run ctr on this node. If ``ok`` is True its exit code must be 0, if False it must not be."""
        command = [program, "-a", str(self.socket), "-n", namespace, *map(str, arguments)]
        done = subprocess.run(
            command,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=text,
            timeout=seconds,
            check=False,
        )
        expect(command, done, ok)
        return done

    def out(self, *arguments: object, **options: Any) -> str:
        """The output of :meth:`ctr`."""
        return str(self.ctr(*arguments, **options).stdout)

    def tasks(self, namespace: str = "default") -> dict[str, tuple[int, str]]:
        """``ctr task ls`` as a dict from container to (pid, state)."""
        rows = [line.split() for line in self.out("tasks", "ls", namespace=namespace).splitlines()[1:]]
        return {row[0]: (int(row[1]), row[2]) for row in rows if row}

    def logs(self) -> str:
        """The last lines of every service's log, for a failure's message."""
        return self.splitd("logs", "-n", "40", ok=None).stdout

    def remains(self) -> list[int]:
        """Processes that name this node's state directory on their command line: its services, its shims."""
        return processes_naming(self.state)

    def clear(self) -> None:
        """End everything that is left of the node, whatever its state; for the end of a test."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.down()
        end = time.monotonic() + 10
        while (left := self.remains()) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


class Forwarder:
    """A relay of a service that keeps nothing: each call goes on by ``channel``, with its headers and ``more``. It has no
    leases, so that it is not taken for the daemon that it leads to.
    """

    name = "forwarder"

    def __init__(self, channel: rpc.Channel, more: Mapping[str, str] = {}) -> None:
        self.channel = channel
        self.more = more
        self.calls: Counter[str] = Counter()
        """By method."""

    def to(self, namespace: str, key: str = "") -> Self:
        return self

    def is_ready(self) -> bool:
        return self.channel.connected()

    async def ready(self, call: rpc.Call | None = None) -> rpc.Channel:
        await self.channel.reached(5)
        return self.channel

    def arity(self, method: str) -> rpc.Arity:
        return rpc.STREAMS

    def coordinated(self, call: rpc.Call) -> None:
        return None

    def route(self, call: rpc.Call) -> rpc.Route:
        if "leases" in call.method:
            raise errors.Unimplemented(call.method)
        self.calls[call.method] += 1
        return rpc.Route(self, {**call.passed_on(), **self.more})


def processes_naming(path: Path) -> list[int]:
    """Pids of the processes, except this one, that have ``path`` or something below it among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(a == str(path) or a.startswith(f"{path}/") for a in arguments):
            found.append(int(entry.name))
    return found


async def turns(count: int = 5) -> None:
    """Let everything run that is ready to."""
    for _ in range(count):
        await asyncio.sleep(0)
