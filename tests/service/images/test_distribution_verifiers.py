"""Image verifiers: real programs, and their effect on pulls."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from pathlib import Path

import pytest

from services.images.distribution.verifiers import OUTPUT_LIMIT, Verifier
from services.images.verifier_config import Config
from services.kit import errors, tracing
from services.oci.descriptors import Descriptor
from services.oci.media_types import MANIFEST
from tests.spans import Recorder
from tests.support import eventually_async, within

pytestmark = pytest.mark.once

NAME = "registry.test/box:1"
ROOT = Descriptor(MANIFEST, f"sha256:{'a' * 64}", 7)
BLOCKED = f"image verifier bindir blocked pull of {NAME} with digest {ROOT.digest} for reason: verifier "
NO_JUDGEMENT = f"blocking pull of {NAME} with digest {ROOT.digest}: image verifier bindir returned error: "


def program(directory: Path, name: str, script: str, mode: int = 0o755) -> Path:
    """Write a verifier: a shell script."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


def verifier(directory: Path, **more: object) -> Verifier:
    return Verifier(Config(bin_dir=str(directory), **more))  # type: ignore[arg-type]


async def refused(directory: Path, **more: object) -> str:
    """Return the error of a blocked pull."""
    with pytest.raises(errors.Unknown) as caught:
        await verifier(directory, **more).verify(NAME, ROOT)
    return str(caught.value)


async def gone(pid: int) -> bool:
    """Return whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except FileNotFoundError:
        return True


async def test_a_program_gets_containerds_arguments(tmp_path: Path) -> None:
    """The program gets them as arguments and on standard input; it may leave the input unread."""
    program(tmp_path, "a", f'echo "$@" >{tmp_path}.arguments; cat >{tmp_path}.stdin; echo fine')
    program(tmp_path, "b", "exec <&-; echo fine too")
    await verifier(tmp_path).verify(NAME, ROOT)
    assert (
        Path(f"{tmp_path}.arguments").read_text()
        == f"-name {NAME} -digest {ROOT.digest} -stdin-media-type application/vnd.oci.descriptor.v1+json\n"
    )
    assert json.loads(Path(f"{tmp_path}.stdin").read_bytes()) == {
        "mediaType": MANIFEST,
        "digest": ROOT.digest,
        "size": 7,
    }


async def test_no_verifier_is_no_objection(tmp_path: Path) -> None:
    """The directory may be missing, empty or not configured; a path that is no directory is an error."""
    await verifier(tmp_path / "absent").verify(NAME, ROOT)
    await verifier(tmp_path).verify(NAME, ROOT)
    await Verifier(Config(bin_dir="")).verify(NAME, ROOT)
    file = tmp_path / "file"
    file.touch()
    assert await refused(file) == f"{NO_JUDGEMENT}failed to list directory contents: {file}: Not a directory"


async def test_a_rejection_is_told_with_its_reason(tmp_path: Path) -> None:
    """The reason is its standard output without surrounding space; consent of the others does not help."""
    program(tmp_path, "a", "echo good")
    program(tmp_path, "b", "echo; echo ' not signed '; exit 3")
    assert await refused(tmp_path) == f"{BLOCKED}b rejected image (exit code 3): not signed"


@pytest.mark.parametrize(("reason", "kept"), [("x", OUTPUT_LIMIT), ("ä", OUTPUT_LIMIT // 6)])
async def test_a_long_reason_is_cut_and_read_to_its_end(tmp_path: Path, reason: str, kept: int) -> None:
    """The program can write all of it, on both outputs; the kept part fits into a header."""
    program(
        tmp_path,
        "a",
        (
            f"yes {reason} | head -n 200000 | tr -d '\\n'; yes {reason} | head -n 200000 >&2; echo done "
            f">{tmp_path}.done; "
            "exit 1"
        ),
    )
    said = (await refused(tmp_path)).removeprefix(f"{BLOCKED}a rejected image (exit code 1): ")
    assert said.endswith("(stdout truncated)")
    assert said.count(reason) == kept
    assert Path(f"{tmp_path}.done").exists()


async def test_a_program_that_cannot_be_started_blocks(tmp_path: Path) -> None:
    """Such a program is a file that is not executable, a directory, or a program without an interpreter."""
    for name, words, make in (
        ("a", "Permission denied", lambda: program(tmp_path, "a", "exit 0", 0o644)),
        ("b", "Permission denied", (tmp_path / "b").mkdir),
        ("c", "No such file or directory", lambda: (tmp_path / "c").symlink_to("/absent")),
        ("d", "Exec format error", lambda: ((tmp_path / "d").write_text("exit 0"), (tmp_path / "d").chmod(0o755))),  # type: ignore[func-returns-value]
    ):
        make()
        said = await refused(tmp_path)
        assert said.startswith(f"{NO_JUDGEMENT}failed to call verifier {name} (runtime ")
        assert said.endswith(f"): starting process: fork/exec {tmp_path / name}: {words}")
        for left in tmp_path.iterdir():
            left.rmdir() if left.is_dir() else left.unlink()


async def test_a_program_ended_by_a_signal_blocks(tmp_path: Path) -> None:
    """It has no exit code."""
    program(tmp_path, "a", "kill -9 $$")
    assert (await refused(tmp_path)).endswith("): waiting on command to exit: signal: Killed")


@pytest.mark.parametrize(
    "script",
    [
        "sleep 60 & echo $! >{pids}; wait",
        "sleep 60 & echo $! >{pids}; exit 0",
        "sleep 60 >&- & echo $! >{pids}; exit 0",
    ],
    ids=["slow", "child-holds-stdout", "child-holds-stderr"],
)
async def test_time_is_over_for_a_program_and_its_children(tmp_path: Path, script: str) -> None:
    """A program that has exited is not done while a child of it holds an output. All processes of its group are
    killed.
    """
    pids = Path(f"{tmp_path}.pids")
    program(tmp_path, "a", script.format(pids=pids))
    with within(30, at_least=0.5):
        said = await refused(tmp_path, per_verifier_timeout=0.5)
    assert re.fullmatch(
        rf"{re.escape(NO_JUDGEMENT)}failed to call verifier a \(runtime [\d.m]+s\): waiting on command to exit: context deadline exceeded",
        said,
    )
    child = int(pids.read_text())
    await eventually_async(lambda: gone(child), "the child was not killed")


async def test_a_child_that_goes_on_by_itself_is_let_go(tmp_path: Path) -> None:
    """It holds none of our files and is left alone, as in containerd."""
    pids = Path(f"{tmp_path}.pids")
    program(tmp_path, "a", f"sleep 60 >/dev/null 2>&1 & echo $! >{pids}")
    await verifier(tmp_path).verify(NAME, ROOT)
    child = int(pids.read_text())
    assert not await gone(child)
    os.kill(child, 9)


async def test_a_cancelled_pull_leaves_no_program(tmp_path: Path) -> None:
    """So does a rejection while another program still runs."""
    pids = Path(f"{tmp_path}.pids")
    program(tmp_path, "a", f"echo $$ >{pids}; exec sleep 60")
    pull = asyncio.ensure_future(verifier(tmp_path).verify(NAME, ROOT))
    await eventually_async(
        lambda: asyncio.to_thread(lambda: pids.exists() and pids.read_text().strip()), "the program was not started"
    )
    pull.cancel()
    await asyncio.wait((pull,))
    assert not Path(f"/proc/{int(pids.read_text())}").exists()
    program(tmp_path, "b", f"until [ -s {pids} ]; do sleep 0.01; done; exit 1")
    pids.unlink()
    assert (await refused(tmp_path)).startswith(f"{BLOCKED}b ")
    assert not Path(f"/proc/{int(pids.read_text())}").exists()


async def test_how_many_are_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first by name are run; -1 is no limit; 0 runs none. Programs that are not run are named in the log."""
    for number in range(6):
        program(tmp_path, f"{number}", f"touch {tmp_path}.{number}")
    for most, asked in ((2, 2), (0, 0), (-1, 6), (6, 6)):
        caplog.clear()
        await verifier(tmp_path, max_verifiers=most).verify(NAME, ROOT)
        done = [number for number in range(6) if Path(f"{tmp_path}.{number}").exists()]
        assert done == list(range(asked))
        assert ("are being skipped" in caplog.text) == (asked < 6)
        for number in done:
            Path(f"{tmp_path}.{number}").unlink()


async def test_standard_error_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged at debug level, line by line."""
    program(tmp_path, "a", "echo one >&2; echo two >&2")
    caplog.set_level(logging.DEBUG, "services.images.distribution.verifiers")
    await verifier(tmp_path).verify(NAME, ROOT)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG][:2] == [
        "image verifier a: one",
        "image verifier a: two",
    ]


async def test_each_program_has_a_span_which_it_can_continue(tmp_path: Path) -> None:
    """Its exit code is an attribute, and TRACEPARENT is in its environment."""

    exporter = Recorder()
    tracing.setup(exporter.export, loose=True)
    try:
        program(tmp_path, "a", f"echo $TRACEPARENT >{tmp_path}.parent")
        await verifier(tmp_path).verify(NAME, ROOT)
    finally:
        tracing.reset()
    (span,) = exporter.get_finished_spans()
    assert span.name == "images.verify"
    assert dict(span.attributes or {}) == {"verifier": "a", "reference": NAME, "digest": ROOT.digest, "exit_code": 0}
    assert f"{span.context.span_id:016x}" in Path(f"{tmp_path}.parent").read_text()


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """This holds for whatever a program does, and for one that does not start."""
    program(tmp_path, "a", "exit 1")
    await refused(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for script in ("exit 1", "sleep 60", "kill -9 $$"):
        program(tmp_path, "a", script)
        await refused(tmp_path, per_verifier_timeout=0.1)
    (tmp_path / "a").chmod(0o644)
    await refused(tmp_path)
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before
