"""Image verifiers: programs in a directory that are asked before anything of an image is fetched.

The contract is containerd's (its docs/image-verification.md). Each file of ``bin_dir`` is started as ``FILE -name NAME
-digest DIGEST -stdin-media-type TYPE`` with the descriptor as JSON on its standard input. Exit code 0 lets the image
pass; any other blocks it. Standard output is the reason; standard error is logged at debug level. A program that cannot
be started, is ended by a signal or takes too long blocks the image too. An empty or missing directory lets all images
pass.

A program is done when it has ended and no process has its outputs open any more. A program whose child keeps them open
is not done, and is finally killed with its whole process group.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from services.images.concurrency.gather import run_all
from services.images.documents import manifests
from services.images.verifier_config import Config
from services.kit import errors, pipes, settings, tracing
from services.oci.descriptors import Descriptor

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/vnd.oci.descriptor.v1+json"

OUTPUT_LIMIT = 32 << 10
"""Bytes of standard output that are the reason, and of standard error that are logged; the rest is read and dropped."""

_PLAIN = bytes(range(0x20, 0x7F)).replace(b"%", b"")
"""Every other byte of an error takes three on the wire (grpc-message), and peers accept at most 64 KiB of headers."""

AT_ONCE = 4
"""Programs of all pulls that run at once. A program's time begins when it is started. One that checks signatures takes
a core and 100 MB.
"""


class Verifier:
    """Asks the programs. There is one for the process."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._running = asyncio.Semaphore(AT_ONCE)

    async def verify(self, name: str, descriptor: Descriptor) -> None:
        """Raise Unknown, in containerd's words, unless every program lets the image ``name``, which was resolved to
        ``descriptor``, pass.
        """
        try:
            programs = await asyncio.to_thread(self._programs)
        except OSError as error:
            raise _no_judgement(
                name, descriptor, f"failed to list directory contents: {self._config.bin_dir}: {error.strerror}"
            ) from None
        await run_all(self._asked(program, name, descriptor) for program in programs)

    def _programs(self) -> list[Path]:
        if not self._config.bin_dir:
            return []
        directory, most = Path(self._config.bin_dir), self._config.max_verifiers
        try:
            names = sorted(os.listdir(directory))
        except FileNotFoundError:
            return []
        if 0 <= most < len(names):
            log.warning(
                "image verifiers are being skipped: %s has %d entries, of which max_verifiers allows %d",
                directory,
                len(names),
                most,
            )
            del names[most:]
        return [directory / each for each in names]

    async def _asked(self, program: Path, name: str, descriptor: Descriptor) -> None:
        arguments = ("-name", name, "-digest", descriptor.digest, "-stdin-media-type", MEDIA_TYPE)
        async with self._running:
            begun = time.monotonic()
            with tracing.span("images.verify", verifier=program.name, reference=name, digest=descriptor.digest) as span:
                try:
                    code, reason = await _run(
                        program,
                        arguments,
                        manifests.encoded(manifests.descriptor_to_json(descriptor)) + b"\n",
                        self._config.per_verifier_timeout,
                    )
                except (errors.NodeError, OSError) as error:
                    took = settings.format_duration(round(time.monotonic() - begun, 3))
                    cause = (
                        f"starting process: fork/exec {program}: {error.strerror}"
                        if isinstance(error, OSError)
                        else str(error)
                    )
                    raise _no_judgement(
                        name, descriptor, f"failed to call verifier {program.name} (runtime {took}): {cause}"
                    ) from None
                span.set(exit_code=code)
                if code:
                    log.warning(
                        "image verifier %s blocked the pull of %s with digest %s (exit code %d)",
                        program.name,
                        name,
                        descriptor.digest,
                        code,
                    )
                    raise errors.Unknown(
                        f"image verifier bindir blocked pull of {name} with digest {descriptor.digest} for reason: "
                        f"verifier {program.name} rejected image (exit code {code}): {reason}"
                    )
            log.debug(
                "image verifier %s allowed the pull of %s with digest %s: %s",
                program.name,
                name,
                descriptor.digest,
                reason,
            )


def _no_judgement(name: str, descriptor: Descriptor, cause: str) -> errors.NodeError:
    log.error("no judgement of %s with digest %s from image verifiers: %s", name, descriptor.digest, cause)
    return errors.Unknown(
        f"blocking pull of {name} with digest {descriptor.digest}: image verifier bindir returned error: {cause}"
    )


# ---------------------------------------------------------------------------------------------- programs


async def _run(program: Path, arguments: Sequence[str], given: bytes, seconds: float) -> tuple[int, str]:
    """The exit code and reason of a program. OSError if it cannot be started; Unknown if it has no exit code, or none
    in time.

    It is started and waited for here, not by asyncio: nothing may reap it, and so free its pid, which is also its
    group's, before the group has been killed.
    """
    with _pipe() as (stdout, out), _pipe() as (stderr, err):
        pid = _started(program, arguments, given, out, err)
        try:
            async with (
                pipes.reading(os.dup(stdout.fileno())) as reason,
                pipes.reading(os.dup(stderr.fileno())) as trouble,
            ):
                with _end_of(pid) as ended:
                    async with asyncio.timeout(seconds):
                        said, _ = await asyncio.gather(_reason(reason), _logged(trouble, program.name))
                        await ended
        except BaseException as error:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):  # it may have left its group
                    kill(pid, signal.SIGKILL)
            await asyncio.to_thread(os.waitpid, pid, 0)
            if isinstance(error, TimeoutError):
                raise errors.Unknown(f"waiting on command to exit: {errors.DeadlineExceeded.suffix}") from None
            raise
    code = _exit_code(pid)
    if code < 0:
        raise errors.Unknown(f"waiting on command to exit: signal: {signal.strsignal(-code)}")
    return code, said


def _started(program: Path, arguments: Sequence[str], given: bytes, out: BinaryIO, err: BinaryIO) -> int:
    """Start the program in a process group of its own, and return its pid. Our writing ends are closed."""
    with out, err, open(os.memfd_create("descriptor", os.MFD_CLOEXEC), "w+b", buffering=0) as stdin:
        stdin.write(given)
        stdin.seek(0)
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), number) for number, file in enumerate((stdin, out, err))]
        return os.posix_spawn(
            program,
            [str(program), *arguments],
            {**os.environ, **tracing.environment()},
            file_actions=actions,
            setpgroup=0,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )


def _exit_code(pid: int) -> int:
    """The exit code of a process that has ended; negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Both ends of a pipe; the block may close them."""
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as ours, open(writing, "wb", buffering=0) as theirs:
        yield ours, theirs


@contextlib.contextmanager
def _end_of(pid: int) -> Iterator[asyncio.Future[None]]:
    """A future that is done when the process has ended; the process is not reaped."""
    loop = asyncio.get_running_loop()
    ended, fd = loop.create_future(), os.pidfd_open(pid)

    def end() -> None:
        loop.remove_reader(fd)
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(fd, end)
    try:
        yield ended
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def _reason(stdout: asyncio.StreamReader) -> str:
    output, whole = await _all(stdout)
    if len(output) + 2 * len(output.translate(None, _PLAIN)) > OUTPUT_LIMIT:
        output, whole = output[: OUTPUT_LIMIT // 3], False
    return output.decode(errors="replace").strip() + ("" if whole else "(stdout truncated)")


async def _logged(stderr: asyncio.StreamReader, program: str) -> None:
    output, whole = await _all(stderr)
    for line in output.decode(errors="replace").splitlines():
        log.debug("image verifier %s: %s", program, line)
    if not whole:
        log.debug("image verifier %s: (its output goes on)", program)


async def _all(stream: asyncio.StreamReader) -> tuple[bytes, bool]:
    """The first :data:`OUTPUT_LIMIT` bytes of a stream, which is read to its end, and whether these are all."""
    output, whole = b"", True
    while data := await stream.read(1 << 16):
        room = OUTPUT_LIMIT - len(output)
        output += data[:room]
        whole = whole and len(data) <= room
    return output, whole
