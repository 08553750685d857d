"""Programs that are run to their end."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit import loops
from services.tasks import programs
from tests.support import eventually_async


@pytest.fixture
def output() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


async def run(script: str, directory: Path, output: int, seconds: float = 60.0) -> tuple[int, str]:
    with open(os.devnull, "rb") as null:
        code = await programs.run(
            ["/bin/sh", "-c", script],
            directory,
            {"WORD": "w"},
            seconds,
            stdin=null.fileno(),
            stdout=output,
            stderr=output,
        )
    return code, os.pread(output, 1 << 16, 0).decode()


async def test_its_code_files_directory_and_environment(place: Path, output: int) -> None:
    """It is in a session of its own, and has nothing else of this process."""
    descriptor = os.dup(output)
    os.set_inheritable(descriptor, True)
    try:
        script = "echo $WORD $HOME; pwd; cat; echo out; echo err >&2; ls /proc/$$/fd; ps -o sid= -p $$; echo $$; exit 7"
        code, said = await run(script, place, output)
    finally:
        os.close(descriptor)
    lines = said.split()
    assert code == 7
    assert lines[:4] == ["w", str(place), "out", "err"]
    assert lines[4:7] == ["0", "1", "2"]
    assert len(lines) == 9
    assert lines[7] == lines[8]


async def test_a_signal_that_ended_it(place: Path, output: int) -> None:
    assert (await run("kill -9 $$", place, output))[0] == -9


async def test_what_cannot_be_started(place: Path, output: int) -> None:
    for program, directory in (("/no/such/program", place), ("/bin/true", place / "missing"), ("/etc/passwd", place)):
        with pytest.raises(OSError, match=r"No such file|Permission"):
            await programs.run([program], directory, {}, 60.0, stdin=output, stdout=output, stderr=output)


def living(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_one_that_takes_too_long_is_killed_and_reaped(place: Path, output: int) -> None:
    with pytest.raises(TimeoutError):
        await run("echo $$; exec sleep 1000", place, output, seconds=1.0)
    if said := os.pread(output, 100, 0):  # else it was killed before it came to that
        await eventually_async(lambda: asyncio.sleep(0, not living(int(said))), "it is not reaped")


async def test_one_whose_caller_leaves_is_killed_and_reaped(place: Path, output: int) -> None:
    running = loops.task("a program", run("echo $$; exec sleep 1000", place, output))
    await eventually_async(lambda: asyncio.sleep(0, os.fstat(output).st_size > 1), "it does not begin")
    pid = int(os.pread(output, 100, 0))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually_async(lambda: asyncio.sleep(0, not living(pid)), "it is not reaped")
