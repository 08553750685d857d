"""Starts the worker programs of this service, and ends them with the calls that they work for."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.kit import errors, kept, loops, metrics, pipes, tracing
from services.oci.mounts import Mount
from services.snapshots import programs
from services.snapshots.diff import standstill
from services.snapshots.diff.blocked import Sampler, Seen
from services.snapshots.diff.inherit import Unnamed
from services.snapshots.diff.mounts import to_arguments
from services.snapshots.diff.spent import Spent

_SECONDS = metrics.Counter(
    "splitd_layer_seconds_total", "Seconds of the programs that unpack and make layers, by what they went for.", "stage"
)
_REST = 10.0
"""Seconds without work after which the apply program ends: it takes 10 MB, and 40 ms to start."""

_ENDING = 2.0
"""Seconds to wait for the end of a program that takes no more requests, so that the error can say how it ended."""

_FILES = (
    "services/__init__.py",
    "services/snapshots/__init__.py",
    "services/snapshots/diff/*.py",
    *(f"services/snapshots/erofs/{name}.py" for name in ("__init__", "below", "image", "layer", "place", "written")),
    *(f"services/oci/{name}.py" for name in ("__init__", "mounts", "prepared")),
    *(
        f"services/kit/{name}.py"
        for name in ("__init__", "at_work", "files", "inflate", "loop_devices", "mounting", "tar", "tarheaders")
    ),
)
"""The modules of ours that the programs import, and no more: each file costs half a millisecond at the start of a
service.
"""


class Applied(NamedTuple):
    """An unpacked layer: its diff id, its uncompressed size in bytes, and, if it was unpacked alone, the directories
    that it uses but does not name, for ``inherit.py``.
    """

    diff_id: str
    size: int
    unnamed: tuple[Unnamed, ...] = ()


@dataclass(frozen=True, slots=True)
class Growth:
    """A blob that is still arriving: the file descriptor with its news (``apply.py``), which the worker takes over, its
    final size, and the span that brings its bytes (``tracing.Span.ref``).
    """

    news: int
    size: int
    span: str = ""


class Appliers:
    """The workers that unpack layers; one object for each process. ``scratch`` is an empty directory on which workers
    mount, each in its own namespace. ``limit``: seconds without progress after which a worker is killed.
    """

    def __init__(self, scratch: str, limit: float = standstill.LIMIT, rest: float = _REST) -> None:
        self._scratch = scratch
        self._limit = limit
        self._rest_seconds = rest
        _code()
        self._ids = itertools.count(1)
        self._program: _Program | None = None
        self._starting = asyncio.Lock()
        self._starter = ""
        """The span that starts the program."""
        self._expecting: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None

    def expect(self) -> None:
        """Start the program, since work will come in a moment. If it cannot be started, that work gets the error."""

        async def start() -> None:
            async with self._starting:
                with contextlib.suppress(OSError):
                    await self._start(tracing.background)
            self._end_when_idle()

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
        image: bool = False,
        growth: Growth | None = None,
    ) -> Applied:
        """Unpack the layer in the file ``blob`` onto ``mounts``.

        ``detect``: it may be compressed. ``sync``: return when its files are durable. ``alone``: the only mount binds
        the future upper directory of an overlay. ``image``: the layer is an EROFS image.

        An error that the worker reports is Unknown, with its text, as containerd classifies such errors, or
        Unimplemented. A worker that ends without an answer, or is killed because it makes no progress
        (``standstill.py``), is Internal. If the caller is cancelled, the worker is killed, and this returns when it is
        gone.
        """
        words = [
            "detect" if detect else "plain",
            "sync" if sync else "nosync",
            "alone" if alone else "whole",
            "image" if image else "tar",
            str(growth.size if growth else 0),
        ]
        program = await self._running()
        with tracing.span("diff.unpack") as span:
            begun = time.monotonic()
            if growth:
                span.link(growth.span)

            def cut(seen: Seen) -> None:
                """The span ends when the worker is killed: a slow disk may hold that for minutes."""
                _set_seen(span, seen, time.monotonic() - begun, "bytes" if growth else "rest")
                span.failure(errors.Aborted.code, "the unpacking was cut off: its caller gave up")
                span.end()

            job = _Job(str(next(self._ids)), asyncio.get_running_loop().create_future(), cut)
            request = ["apply", job.id, *words, *to_arguments(mounts)]
            try:
                said = await self._run_worker(program, job, request, [blob, *([growth.news] if growth else [])])
            except errors.NodeError:
                _set_seen(span, job.seen, time.monotonic() - begun, "bytes" if growth else "rest")
                raise
            answer, *unnamed = said.split(b"\0")
            diff_id, size, spent = answer.decode().split(" ")
            _set_times(span, Spent.parse(spent).settled(job.seen.blocked), time.monotonic() - begun, "inflate")
            span.put({"splitd.diff_id": diff_id, "splitd.size": int(size)})
        return Applied(diff_id, int(size), tuple(map(Unnamed.parse, unnamed)))

    async def _run_worker(self, program: _Program, job: _Job, request: Sequence[str], files: Sequence[int]) -> bytes:
        """The worker's answer after ``ok``."""
        try:
            status, answer = await program.run_worker(job, request, files)
        finally:
            self._end_when_idle()
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
        """The program. Whoever waits for its start makes a span ``wait.worker``, linked to the span that starts it."""
        if self._starting.locked() or self._program is None or self._program.over:
            with tracing.wait("worker", self._starter, **{"splitd.wait.for": "the program that forks workers"}):
                async with self._starting:
                    await self._start(tracing.span)
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        assert self._program is not None
        return self._program

    async def _start(self, span: Callable[[str], tracing.Span]) -> None:
        """Start the program, unless it runs. ``span`` makes the start's span."""
        if self._program is not None and not self._program.over:
            return
        with span("diff.start") as starting:
            self._starter = starting.ref()
            try:
                self._program = await _Program.started(self._scratch, self._limit)
            finally:
                self._starter = ""

    def _end_when_idle(self) -> None:
        """End the program if it is not needed for a while."""
        if self._program is not None and not self._program.busy and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(self._rest_seconds, self._end)

    def _end(self) -> None:
        self._idle = None
        if self._program is not None and not self._program.busy:
            self._program.end()
            self._program = None

    async def aclose(self) -> None:
        """End the program, and all its workers."""
        if self._expecting is not None:
            await asyncio.wait((self._expecting,))
        if self._idle is not None:
            self._idle.cancel()
        if self._program is not None:
            self._program.end()
            await self._program.gone()


_UNSEEN = Seen(0, 0, 0)


@dataclass(slots=True)
class _Job:
    """One worker's request. ``ended`` has its wait status; ``cut`` is called when it is killed for a caller that gave
    up.
    """

    id: str
    ended: asyncio.Future[int]
    cut: Callable[[Seen], None]
    seen: Seen = _UNSEEN


class _Program:
    """A running ``apply.py``."""

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket, limit: float) -> None:
        self.over = False
        """The program takes no more work."""
        self._began = False
        self._limit = limit
        self._process = process
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[str, _Job] = {}
        """By their ids."""
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
        """Whether the program has workers."""
        return bool(self._jobs)

    async def run_worker(self, job: _Job, request: Sequence[str], files: Sequence[int]) -> tuple[int, bytes]:
        """Run one worker. Returns its wait status and its answer. If the caller is cancelled, the worker is killed
        first.
        """
        self._jobs[job.id], ended = job, job.ended
        answers, answering = os.pipe2(os.O_CLOEXEC)
        answer = loops.task("the answer of an apply worker", _all_of(answers))
        # there is no worker, or one that cannot be killed and keeps the pipe open
        ended.add_done_callback(lambda _: ended.cancelled() or ended.exception() is None or answer.cancel())
        try:
            try:
                await self._send("\0".join(request), [answering, *files])
            except OSError as error:
                if not ended.done():
                    ended.set_exception(
                        errors.Internal(f"the apply worker cannot be started: {await self._end_reason(error)}")
                    )
            except BaseException:
                ended.cancel()
                raise
            finally:
                os.close(answering)
            try:
                status, said = await asyncio.shield(ended), await asyncio.shield(answer)
            except asyncio.CancelledError:
                with contextlib.suppress(OSError):  # the program has gone, and its workers with it
                    await self._send(f"kill\0{job.id}", [])
                raise
        finally:
            try:
                await _wait_all(ended, answer)
            finally:
                del self._jobs[job.id]
        if not self._began:
            raise errors.Internal(f"the apply worker cannot be started: {await self._end_reason()}")
        return status, said

    async def _send(self, words: str, files: Sequence[int]) -> None:
        """Send a packet to the program, which takes it soon. A packet is sent completely or not at all."""
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
        except ConnectionResetError:  # a request was not read
            data = b""
        if data:
            what, name, *how = data.decode().split("\0")
            if what == "began":
                self._began = True
                return
            job = self._jobs[name]
            job.seen = Seen.parse(how[-3:])
            if what == "still":
                job.ended.set_exception(programs.stood_still("the apply worker", self._limit))
            elif what == "cut":
                job.cut(job.seen)
            else:
                job.ended.set_result(int(how[0]))
            return
        self.end()

    async def _end_reason(self, error: OSError | None = None) -> str:
        """Why a program takes no request, or ended before it took one."""
        if error is not None and not isinstance(error, BrokenPipeError | ConnectionResetError):
            return str(error.strerror)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING):
                await self._process.wait()
        return f"its program {_exit_text(self._process.returncode)}"

    def end(self) -> None:
        """End the program, if it has not ended; its workers die with it."""
        if self.over:
            return
        self.over = True
        self._loop.remove_reader(self._connection)
        self._connection.close()
        for job in self._jobs.values():
            if not job.ended.done():
                job.ended.set_result(signal.SIGKILL)

    async def gone(self) -> None:
        """Wait for its end."""
        await self._process.wait()


async def compare(
    *arguments: str, file: int, started: Callable[[], None], limit: float = standstill.LIMIT
) -> list[str]:
    """Make a layer in ``file``, as ``compare.py`` says. Returns its digest, its size and its diff id. Errors and
    ``limit`` are those of :meth:`Appliers.apply`.
    """
    with tracing.span("diff.compare") as span:
        begun = time.monotonic()
        (*answer, spent), blocked = await run("compare", *arguments, file=file, started=started, limit=limit)
        _set_times(span, Spent.parse(spent).settled(blocked), time.monotonic() - begun, "compress")
        return answer


def _set_times(span: tracing.Span, spent: Spent, seconds: float, coding: str) -> None:
    """Say on the span of a worker, which took ``seconds``, what they went for. ``splitd.time.rest_ms`` is what the
    worker does not know of: its start, and the way of its answer.
    """
    parts = {
        "cpu": spent.cpu,
        "runqueue": spent.runqueue,
        "disk": spent.disk,
        "bytes": spent.bytes,
        "rest": max(0, round(seconds * 1e6) - spent.whole),
        coding: spent.coding,
        "digest": spent.digest,
        "files": spent.files,
        "busy": spent.busy,
    }
    span.put({f"splitd.time.{name}_ms": part / 1000 for name, part in parts.items()})
    for stage in ("cpu", "runqueue", "disk", "bytes"):
        _SECONDS.add(parts[stage] / 1e6, stage)


def _set_seen(span: tracing.Span, seen: Seen, seconds: float, rest: str) -> None:
    """:func:`_set_times` of a worker that did not say what its ``seconds`` went for, by what was seen of it. ``rest``
    stands for what was not: its waits for its blob, or the way of its answer.
    """
    left = round(seconds * 1e6)
    for name, part in (("runqueue", seen.runqueue), ("disk", seen.blocked), ("cpu", seen.cpu)):
        took = min(part, left)
        left -= took
        span.put({f"splitd.time.{name}_ms": took / 1000})
    span.put({f"splitd.time.{rest}_ms": left / 1000})


async def run(
    program: str, *arguments: str, file: int, started: Callable[[], None], limit: float = standstill.LIMIT
) -> tuple[list[str], int]:
    """Run ``services.snapshots.diff.PROGRAM`` with ``file`` as its standard input. Returns the words of its answer
    after ``ok``, and for how many microseconds it was blocked. Errors and ``limit`` are those of
    :meth:`Appliers.apply`.
    """
    process = await _start(program, *arguments, stdin=file, stdout=asyncio.subprocess.PIPE)
    sampler = Sampler(process.pid)
    try:
        started()
        assert process.stdout is not None
        async with loops.running("the samples of a worker", lambda: sampled(sampler)):
            output = await programs.watched(f"the {program} worker", process, process.stdout.read(), limit)
        code = await process.wait()
    except BaseException:
        # it is no group leader before it has begun
        for kill in (os.killpg, os.kill) if process.returncode is None else ():
            with contextlib.suppress(ProcessLookupError):
                kill(process.pid, signal.SIGKILL)
        await programs.gone(process)
        raise
    finally:
        sampler.close()
    *_, answer = output.decode("utf-8", "backslashreplace").splitlines() or [""]
    verdict, _, rest = answer.partition(" ")
    if verdict == "ok" and code == 0:
        return rest.split(" "), round(sampler.blocked * 1e6)
    raise _refused(program, verdict, rest, code)


async def sampled(sampler: Sampler) -> None:
    """Take samples for ever."""
    while True:
        await asyncio.sleep(sampler.pause())
        sampler.look()


def _code() -> int:
    """The archive with the modules that the programs import."""
    return kept.archive(_FILES)


async def _start(program: str, *arguments: str, stdin: int, stdout: int | None = None) -> asyncio.subprocess.Process:
    """Start a program. ``-S`` and the short module path keep a start below 30 ms."""
    code = _code()
    environment = {**os.environ, "PYTHONPATH": kept.search_path(code, sys.path)}
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
    return errors.Internal(f"the {program} worker {_exit_text(code)}")


def _exit_text(code: int | None) -> str:
    if code is None:
        return "does not answer"
    return f"ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}, see the service's log"


async def _all_of(pipe: int) -> bytes:
    """All data written into a pipe, until its other end is closed; the pipe is then closed."""
    async with pipes.reading(pipe) as reader:
        return await reader.read()


async def _wait_all(*futures: asyncio.Future[Any]) -> None:
    """Wait for all ``futures``, also when cancelled; the cancellation is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not all(future.done() for future in futures):
        try:
            await asyncio.wait(futures)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
