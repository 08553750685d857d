"""Starting the worker programs of this service, and ending them with the call that they work for."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.kit import errors, kept, loops, pipes, tracing
from services.oci.mounts import Mount
from services.snapshots import programs
from services.snapshots.diff import standstill
from services.snapshots.diff.inherit import Unnamed
from services.snapshots.diff.mounts import to_arguments

_REST = 10.0
"""Seconds without work after which the program that unpacks ends: it takes 10 MB, and 40 ms to start."""

_ENDING = 2.0
"""Seconds for one that takes no more requests to end, so that its end can be told."""

_FILES = (
    "services/__init__.py",
    "services/snapshots/__init__.py",
    "services/snapshots/diff/*.py",
    "services/oci/__init__.py",
    "services/oci/mounts.py",
    *(f"services/kit/{name}.py" for name in ("__init__", "inflate", "tar")),
)
"""What our programs import of ours, and no more: each file costs half a millisecond at the start of a service."""

_TRACED = ("services/kit/*.py", "services/wire/*.py")
"""The same where they export spans."""


class Applied(NamedTuple):
    """A layer that was unpacked: its diff id, its uncompressed size in bytes, and, if it was alone, the directories
    that it uses and does not name, for ``inherit.py``.
    """

    diff_id: str
    size: int
    unnamed: tuple[Unnamed, ...] = ()


@dataclass(frozen=True, slots=True)
class Growth:
    """Of a blob that is still arriving: where its news come from (``apply.py``), which the worker takes over, and
    what its size will be.
    """

    news: int
    size: int


class Appliers:
    """Workers that unpack layers; one for a process. ``scratch`` is an empty directory of its own, where workers
    mount in their namespaces. ``limit``: of seconds for which one may stand still. ``rest``: seconds without work after
    which the program ends.
    """

    def __init__(self, scratch: str, limit: float = standstill.LIMIT, rest: float = _REST) -> None:
        self._scratch = scratch
        self._limit = limit
        self._rest_seconds = rest
        _code()
        self._ids = itertools.count(1)
        self._program: _Program | None = None
        self._starting = asyncio.Lock()
        self._expecting: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None

    def expect(self) -> None:
        """Work will come in a moment: start the program meanwhile. If it cannot be started, that work will say why."""

        async def start() -> None:
            with contextlib.suppress(OSError):
                await self._running()
            self._rest()

        if self._program is None and self._expecting is None:
            self._expecting = loops.aside("the start of the apply program", start())
            self._expecting.add_done_callback(lambda _: setattr(self, "_expecting", None))

    async def apply(
        self,
        mounts: Sequence[Mount],
        blob: int,
        *,
        detect: bool,
        sync: bool = False,
        alone: bool = False,
        growth: Growth | None = None,
    ) -> Applied:
        """Unpack the layer in the file ``blob`` onto ``mounts``.

        ``detect``: it may be compressed; ``sync``: return when its files are durable; ``alone``: the one mount binds
        what will be the upper directory of an overlay. What the worker refuses is Unknown, with its text, as containerd
        classifies such errors (but for what is not implemented); a worker that ends without an answer is Internal, and
        so is one that was killed because it stood still (``standstill.py``). If the caller is cancelled the worker is
        killed, and this returns when it is gone.
        """
        words = [
            "detect" if detect else "plain",
            "sync" if sync else "nosync",
            "alone" if alone else "whole",
            str(growth.size if growth else 0),
        ]
        with tracing.span("diff.unpack") as span:
            answer, *unnamed = (await self._worked(words, mounts, [blob, *([growth.news] if growth else [])])).split(
                b"\0"
            )
            diff_id, size, busy, waited = answer.decode().split(" ")
            span.set(diff_id=diff_id, size=int(size), cpu_ms=int(busy) / 1000, waited_ms=int(waited) / 1000)
        return Applied(diff_id, int(size), tuple(map(Unnamed.parse, unnamed)))

    async def _worked(self, words: Sequence[str], mounts: Sequence[Mount], files: Sequence[int]) -> bytes:
        """What a worker answers after ``ok``."""
        program = await self._running()
        request = ["apply", str(next(self._ids)), *words, *to_arguments(mounts)]
        try:
            status, answer = await program.worked(request, files)
        finally:
            self._rest()
        verdict, _, rest = answer.partition(b" ")
        if verdict == b"ok" and status == 0:
            return rest
        raise _refused(
            "apply",
            verdict.decode("utf-8", "replace"),
            rest.decode("utf-8", "backslashreplace"),
            os.waitstatus_to_exitcode(status),
        )

    async def _running(self) -> _Program:
        async with self._starting:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
            if self._program is None or self._program.over:
                self._program = await _Program.started(self._scratch, self._limit)
            return self._program

    def _rest(self) -> None:
        """End the program if nobody wants it for a while."""
        if self._program is not None and not self._program.busy and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(self._rest_seconds, self._end)

    def _end(self) -> None:
        self._idle = None
        if self._program is not None and not self._program.busy:
            self._program.end()
            self._program = None

    async def aclose(self) -> None:
        """End the program, and with it whatever it still does."""
        if self._expecting is not None:
            await asyncio.wait((self._expecting,))
        if self._idle is not None:
            self._idle.cancel()
        if self._program is not None:
            self._program.end()
            await self._program.gone()


class _Program:
    """``apply.py``, running."""

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket, limit: float) -> None:
        self.over = False
        """It takes no more work."""
        self._began = False
        self._limit = limit
        self._process = process
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[str, asyncio.Future[int]] = {}
        self._loop.add_reader(connection, self._received)

    @classmethod
    async def started(cls, scratch: str, limit: float) -> _Program:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            try:
                return cls(await _start("apply", scratch, str(limit), stdin=theirs.fileno()), ours, limit)
            except BaseException:
                ours.close()
                raise

    @property
    def busy(self) -> bool:
        """Whether it has workers."""
        return bool(self._jobs)

    async def worked(self, request: Sequence[str], files: Sequence[int]) -> tuple[int, bytes]:
        """One worker's work: its wait status, and its answer. Cancelled, the worker is killed first."""
        job = request[1]
        self._jobs[job] = ended = self._loop.create_future()
        answers, answering = os.pipe2(os.O_CLOEXEC)
        answer = loops.task("the answer of an apply worker", _all_of(answers))
        # no worker, or one that cannot be ended and keeps the pipe open
        ended.add_done_callback(lambda _: ended.cancelled() or ended.exception() is None or answer.cancel())
        try:
            try:
                await self._send("\0".join(request), [answering, *files])
            except OSError as error:
                if not ended.done():
                    ended.set_exception(
                        errors.Internal(f"the apply worker cannot be started: {await self._why(error)}")
                    )
            except BaseException:
                ended.cancel()
                raise
            finally:
                os.close(answering)
            try:
                status, said = await asyncio.shield(ended), await asyncio.shield(answer)
            except asyncio.CancelledError:
                with contextlib.suppress(OSError):  # there is no program any more, and so no worker
                    await self._send(f"kill\0{job}", [])
                raise
        finally:
            try:
                await _settled(ended, answer)
            finally:
                del self._jobs[job]
        if not self._began:
            raise errors.Internal(f"the apply worker cannot be started: {await self._why()}")
        return status, said

    async def _send(self, words: str, files: Sequence[int]) -> None:
        """A packet to the program, which takes it soon. It is sent, or it is not: never half of it."""
        data = words.encode("utf-8", "surrogateescape")
        while True:
            try:
                socket.send_fds(self._connection, [data], files)
                return
            except BlockingIOError:
                await asyncio.sleep(0.01)

    def _received(self) -> None:
        try:
            data = self._connection.recv(1 << 12)
        except BlockingIOError:
            return
        except ConnectionResetError:  # with a request unread
            data = b""
        if data:
            what, job, *status = data.decode().split("\0")
            if what == "began":
                self._began = True
            elif what == "still":
                self._jobs[job].set_exception(programs.stood_still("the apply worker", self._limit))
            else:
                self._jobs[job].set_result(int(status[0]))
            return
        self.end()

    async def _why(self, error: OSError | None = None) -> str:
        """What became of a program that takes no request, or that ended before it took one."""
        if error is not None and not isinstance(error, BrokenPipeError | ConnectionResetError):
            return str(error.strerror)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING):
                await self._process.wait()
        return f"its program {_how(self._process.returncode)}"

    def end(self) -> None:
        """Have it end, if it has not; its workers die with it."""
        if self.over:
            return
        self.over = True
        self._loop.remove_reader(self._connection)
        self._connection.close()
        for ended in self._jobs.values():
            if not ended.done():
                ended.set_result(signal.SIGKILL)

    async def gone(self) -> None:
        """Wait for its end."""
        await self._process.wait()


async def run(
    program: str, *arguments: str, file: int, started: Callable[[], None], limit: float = standstill.LIMIT
) -> list[str]:
    """Run ``services.snapshots.diff.PROGRAM`` with ``file`` as its standard input; the words of its answer after
    ``ok``. Its errors are as those of :meth:`Appliers.apply`; so is ``limit``.
    """
    process = await _start(program, *arguments, stdin=file, stdout=asyncio.subprocess.PIPE)
    try:
        started()
        assert process.stdout is not None
        output = await programs.watched(f"the {program} worker", process, process.stdout.read(), limit)
        code = await process.wait()
    except BaseException:
        for kill in (os.killpg, os.kill) if process.returncode is None else ():  # it has no group until it has begun
            with contextlib.suppress(ProcessLookupError):
                kill(process.pid, signal.SIGKILL)
        await programs.gone(process)
        raise
    *_, answer = output.decode("utf-8", "backslashreplace").splitlines() or [""]
    verdict, _, rest = answer.partition(" ")
    if verdict == "ok" and code == 0:
        return rest.split(" ")
    raise _refused(program, verdict, rest, code)


def _code() -> int:
    """The archive of what our programs import of ours."""
    return kept.archive(
        (*_FILES, *(_TRACED if any(name.startswith("OTEL_EXPORTER_OTLP_") for name in os.environ) else ()))
    )


async def _start(program: str, *arguments: str, stdin: int, stdout: int | None = None) -> asyncio.subprocess.Process:
    """``-S`` and the short module path keep a start below 30 ms."""
    code = _code()
    environment = {**os.environ, **tracing.environment(), "PYTHONPATH": kept.search_path(code, sys.path)}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-S",
        "-P",
        "-c",
        f"from services.snapshots.diff.{program} import main; main()",
        str(os.getpid()),
        *arguments,
        stdin=stdin,
        stdout=stdout,
        env=environment,
        pass_fds=(code,),
    )


def _refused(program: str, verdict: str, text: str, code: int) -> errors.NodeError:
    if verdict == "error":
        kind = errors.Unimplemented if text.endswith(errors.Unimplemented.suffix) else errors.Unknown
        return kind(text)
    return errors.Internal(f"the {program} worker {_how(code)}")


def _how(code: int | None) -> str:
    if code is None:
        return "does not answer"
    return f"ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}, see the service's log"


async def _all_of(pipe: int) -> bytes:
    """What is written into a pipe, until its other end is closed; the pipe is closed then."""
    async with pipes.reading(pipe) as reader:
        return await reader.read()


async def _settled(*futures: asyncio.Future[Any]) -> None:
    """Wait for them, whatever comes; a cancellation is not lost."""
    cancelled: asyncio.CancelledError | None = None
    while not all(future.done() for future in futures):
        try:
            await asyncio.wait(futures)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
