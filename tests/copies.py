"""Our programs, started by tests as copies of a process that has loaded all our modules, as a node's processes are copies
of supervisord (deploy/inside/copies.py).

Of the 0.4 s of processor time that a ``splitd`` command takes, and of as much of a service's start, nine tenths are the
loading of modules. A copy is a process with command line, variables, files and signals of its own, and ends as a program
that was executed. It is the child of the *template*, a process that each pytest starts once.

A program is executed after all where a copy would not be the same: if a variable that Python or a library reads at its
start differs from the template's, and in another namespace of the kernel.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

TOP = Path(__file__).resolve().parent.parent
PACKAGES = ("client", "conform", "deploy", "gateway", "services", "splitd")
UNLOADED = ("services.kit.grpcio",)
"""Modules with a library that has threads, which a copy would not have."""
AGAIN = ("services.kit.clock", "services.kit.faults")
"""Modules that read the environment while they are loaded (tests/unit/deploy/test_tests_copies.py)."""
_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "GLIBC_", "OPENSSL_", "TZ")
"""How the variables begin that are read once, before a program of ours has its turn."""
_NAMESPACES = ("net", "mnt")
_LARGEST = 1 << 17
"""Bytes of command line and variables that go to the template in one message."""


# ------------------------------------------------------------------------------------------ in a test


class Copy:
    """A running copy, with what tests need of subprocess.Popen."""

    def __init__(self, command: Sequence[str], pid: int, status: int) -> None:
        self.args, self.pid = command, pid
        self.returncode: int | None = None
        self._status, self._lock = status, threading.Lock()

    def poll(self) -> int | None:
        """As Popen's."""
        if self._lock.acquire(blocking=False):  # else another thread waits for it
            try:
                self._look(0)
            finally:
                self._lock.release()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's."""
        if not self._lock.acquire(timeout=-1 if timeout is None else max(0, timeout)):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        try:
            self._look(timeout)
            if self.returncode is None:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            return self.returncode
        finally:
            self._lock.release()

    def _look(self, timeout: float | None) -> None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            if poll.poll(None if timeout is None else max(0, timeout) * 1000):
                told = os.read(self._status, 64)
                os.close(self._status)
                if not told:
                    raise RuntimeError(f"the template of {' '.join(self.args)} has ended")
                self.returncode = os.waitstatus_to_exitcode(int(told))

    def send_signal(self, number: int) -> None:
        """As Popen's."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """As Popen's."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """As Popen's."""
        self.send_signal(signal.SIGTERM)


class _Template:
    """The process whose copies are started."""

    def __init__(self) -> None:
        self.kind = _kind(os.environ)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.copies", str(theirs.fileno())],
                cwd=TOP,
                env={**os.environ, "PYTHONPATH": str(TOP)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._end)

    def start(self, command: Sequence[str], environment: Mapping[str, str], files: Sequence[int]) -> Copy | None:
        """Start a copy with these as its standard input, output and error. None if there is too much to say."""
        message = json.dumps([command, dict(environment)]).encode()
        if len(message) > _LARGEST:
            return None
        status, theirs = os.pipe()
        try:
            socket.send_fds(self._socket, [message], [*files, theirs])
        except OSError:
            os.close(status)
            raise
        finally:
            os.close(theirs)
        pid = os.read(status, _PID)
        if not pid:
            os.close(status)
            raise RuntimeError("the template of our programs has ended")
        return Copy(command, int(pid), status)

    def _end(self) -> None:
        """It ends when nobody can ask it any more."""
        self._socket.close()
        self._process.wait()


def _kind(environment: Mapping[str, str]) -> list[object]:
    """What a copy has in common with its template: variables, and the namespaces of this thread."""
    read = {name: value for name, value in environment.items() if name.startswith(_AT_START)}
    if read.get("PYTHONPATH") == str(TOP):
        del read["PYTHONPATH"]  # the directory is there in any case
    return [read, *(os.stat(f"/proc/thread-self/ns/{name}").st_ino for name in _NAMESPACES)]


_PID = 16
"""Bytes of a process id on the way here."""

_template: _Template | None = None
_beginning = threading.Lock()


def start(
    command: Sequence[str], environment: Mapping[str, str], stdin: int, stdout: int, stderr: int
) -> Copy | subprocess.Popen[bytes]:
    """Start a program of ours, in the directory of the repository: Python, ``-m`` and a module or just a file, and their
    arguments. The others are its standard files.
    """
    global _template
    with _beginning:
        if _template is None:
            _template = _Template()
    if _template.kind == _kind(environment) and (
        copy := _template.start(command, environment, (stdin, stdout, stderr))
    ):
        return copy
    return execute(command, environment, stdin, stdout, stderr)


def written(
    code: str, file: Path, *words: str, stdout: int, environment: Mapping[str, str] = {}
) -> Copy | subprocess.Popen[bytes]:
    """Start ``code``, which is written to a file; its standard error is ours."""
    file.write_text(code)
    with open(os.devnull, "rb") as nothing:
        command = [sys.executable, str(file), *words]
        return start(command, os.environ | environment, nothing.fileno(), stdout, 2)


def execute(
    command: Sequence[str], environment: Mapping[str, str], stdin: int, stdout: int, stderr: int
) -> subprocess.Popen[bytes]:
    """As :func:`start`, by executing Python."""
    return subprocess.Popen(command, cwd=TOP, env=environment, stdin=stdin, stdout=stdout, stderr=stderr)


def run(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a program of ours, without input. subprocess.TimeoutExpired after ``seconds``; it is killed then."""
    said = bytearray(), bytearray()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as readable:
        theirs = [stack.enter_context(open(os.devnull, "rb")).fileno()]
        try:
            for part in said:
                ours, writer = os.pipe()
                theirs.append(writer)
                readable.register(stack.enter_context(open(ours, "rb", buffering=0)), selectors.EVENT_READ, part)
            program = start(command, environment, *theirs)
        finally:
            for writer in theirs[1:]:
                os.close(writer)
        try:
            end = time.monotonic() + seconds
            while readable.get_map():
                if time.monotonic() > end:
                    raise subprocess.TimeoutExpired(command, seconds, bytes(said[0]), bytes(said[1]))
                for key, _ in readable.select(1):
                    if data := os.read(key.fd, 1 << 16):
                        key.data.extend(data)
                    else:
                        readable.unregister(key.fileobj)
            code = program.wait(seconds)
        except BaseException:
            program.kill()
            program.wait()
            raise
    output, error = (part.decode().replace("\r\n", "\n").replace("\r", "\n") for part in said)  # as text=True
    return subprocess.CompletedProcess(command, code, output, error)


# ------------------------------------------------------------------------------------------ the template


def load() -> None:
    """Load all modules of ours, and so what they need of others'."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for found in pkgutil.walk_packages(module.__path__, f"{package}."):
            if not found.name.endswith(".__main__") and found.name not in UNLOADED:
                importlib.import_module(found.name)
    assert threading.active_count() == 1, threading.enumerate()


def main() -> None:
    """Start copies as the process asks that has the other end of this socket, until it ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal: pytest still has nodes to end
    load()
    gc.collect()
    gc.freeze()
    copies: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as awaited:
        awaited.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in awaited.select():
                if key.fileobj is control:
                    message, files, _, _ = socket.recv_fds(control, 2 * _LARGEST, 4)
                    if not message:
                        return
                    *standard, status = files
                    pid = os.fork()
                    if not pid:
                        _begin(json.loads(message), standard)
                    for file in standard:
                        os.close(file)
                    os.write(status, str(pid).encode().ljust(_PID))
                    copies[ended := os.pidfd_open(pid)] = pid, status
                    awaited.register(ended, selectors.EVENT_READ)
                else:
                    awaited.unregister(key.fd)
                    os.close(key.fd)
                    pid, status = copies.pop(key.fd)
                    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                        os.write(status, str(os.waitpid(pid, 0)[1]).encode())
                    os.close(status)


def _begin(asked: tuple[list[str], dict[str, str]], standard: list[int]) -> NoReturn:
    """Be the program, in a new process."""
    command, environment = asked
    try:
        from deploy.inside import copies
        from services.kit import memory

        for number, file in enumerate(standard):
            os.dup2(file, number)
        os.closerange(3, max(os.sysconf("SC_OPEN_MAX"), 1 << 16))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            names = copies.Names()
            names.give(command, environment)
        except OSError:
            os.execve(command[0], command, environment)
        os.environ.clear()
        os.environ.update(environment)
        for name in AGAIN:
            importlib.reload(sys.modules[name])
        memory.shares()
        sys.stdin, sys.stdout, sys.stderr = map(_anew, (sys.stdin, sys.stdout, sys.stderr))
        if command[1] == "-m":
            copies.go_on(lambda: runpy.run_module(command[2], run_name="__main__", alter_sys=True), command[2:])
        sys.path[0] = str(Path(command[1]).parent)
        copies.go_on(lambda: runpy.run_path(command[1], run_name="__main__"), command[1:])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(120)


def _anew(file: TextIO) -> TextIO:
    """As Python makes a standard file at its start."""
    assert isinstance(file, io.TextIOWrapper)
    raw = io.FileIO(file.fileno(), "r" if file is sys.stdin else "w", closefd=False)
    if file is sys.stdin:
        return io.TextIOWrapper(io.BufferedReader(raw), encoding=file.encoding, errors=file.errors)
    plain = file.write_through
    return io.TextIOWrapper(
        raw if plain else io.BufferedWriter(raw),
        encoding=file.encoding,
        errors=file.errors,
        line_buffering=file.line_buffering or (not plain and raw.isatty()),
        write_through=plain,
    )


if __name__ == "__main__":
    main()
