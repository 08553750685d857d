"""Checks of a request before a shim gets it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from services.kit import errors
from services.oci.mounts import Mount
from services.oci.opaque import Opaque
from services.tasks import checks
from services.tasks.store import IO
from tests.support import eventually_async

RUNC, OTHER = "/usr/bin/containerd-shim-runc-v2", "/usr/bin/containerd-shim-other-v1"


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    os.mkfifo(tmp_path / "fifo")
    return str(tmp_path / "fifo")


@pytest.mark.parametrize("value", [None, Opaque("a.Spec", b"")])
def test_a_payload_is_there(value: Opaque | None) -> None:
    """An Any that is absent, or has only a type, is an error that names the field."""
    checks.payload("spec", Opaque("a.Spec", b"{}"))
    with pytest.raises(errors.InvalidArgument, match="^spec is required: invalid argument$"):
        checks.payload("spec", value)


def shim(directory: Path, version: str) -> str:
    """The program of a shim that reports this version and counts its calls."""
    path = directory / "containerd-shim-runc-v2"
    path.write_text(
        f"#!/bin/sh\necho x >> {directory}/asked\nprintf 'containerd-shim-runc-v2:\\n  Version:  {version}\\n  "
        "Revision: x\\n'\n"
    )
    path.chmod(0o755)
    return str(path)


async def test_mounts_with_mapped_ids_are_for_shims_that_make_them(tmp_path: Path) -> None:
    """This holds for containerd 2.0 and later. The version is asked once, and again when the file has changed; other
    mounts, and foreign shims, are not checked.
    """
    plain, mapped = (
        Mount("overlay", "overlay", ("lowerdir=/a:/b",)),
        Mount("overlay", "overlay", ("uidmap=0:1000:10", "gidmap=0:1000:10", "lowerdir=/a")),
    )
    program = shim(tmp_path, "1.6.20~ds1")
    await checks.mounts(program, [plain])
    assert not (tmp_path / "asked").exists()
    for _ in range(2):
        with pytest.raises(
            errors.FailedPrecondition,
            match=(
                f"^the root file system's overlay mount has ids mapped: {program} is of containerd 1.6.20~ds1, and "
                "maps no ids of mounts"
            ),
        ):
            await checks.mounts(program, [plain, mapped])
    assert (tmp_path / "asked").read_text() == "x\n"
    for version in ("v1.7.27", "2.1.9+unknown", "v2.0.0-beta.1", "unknown", ""):
        shim(tmp_path, version)
        if version.startswith("v1"):
            with pytest.raises(errors.FailedPrecondition, match="is of containerd v1.7.27"):
                await checks.mounts(program, [mapped])
        else:
            await checks.mounts(program, [mapped])
    await checks.mounts(OTHER, [mapped])
    await checks.mounts("/none/containerd-shim-runc-v2", [mapped])


def test_runtime_options() -> None:
    """A shim of runc takes its own options, none, and an Any of any type without a value; the options of other shims
    are not checked.
    """
    for options in (
        None,
        Opaque("containerd.runc.v1.Options", b"\x08\x01"),
        Opaque("types/containerd.runc.v1.Options", b"\x08\x01"),
        Opaque("a.Other", b""),
    ):
        checks.runtime_options("options", RUNC, options)
    checks.runtime_options("options", OTHER, Opaque("a.Other", b"\x08\x01"))
    with pytest.raises(errors.InvalidArgument, match='^options: "a.Other" is no option of containerd-shim-runc-v2'):
        checks.runtime_options("options", RUNC, Opaque("a.Other", b"\x08\x01"))


async def test_stdio_that_is_there(tmp_path: Path, fifo: str) -> None:
    """FIFOs, files and devices are accepted; URIs are left to the shim; an empty path is accepted. The stderr of a
    terminal is not checked.
    """
    file = tmp_path / "file"
    file.touch()
    for program in (RUNC, OTHER):
        for io in (
            IO(),
            IO(fifo, fifo, fifo),
            IO("", str(file), "/dev/null"),
            IO(fifo, fifo, "", terminal=True),
            IO(fifo, fifo, "/there/is/none", terminal=True),
            IO("", "file:///not/yet", ""),
            IO(fifo, "binary:///bin/logger?x=y", "binary:///bin/logger?x=y"),
        ):
            await checks.stdio(program, io)
    await checks.stdio(OTHER, IO("streaming+ttrpc://a?b=c", "", ""))


@pytest.mark.parametrize(
    ("io", "message"),
    [
        (IO("/there/is/none", "/dev/null", "/dev/null"), 'stdin "/there/is/none": no such file or directory'),
        (IO("", "/there/is/none", "/dev/null"), 'stdout "/there/is/none": no such file or directory'),
        (IO("", "/dev/null", "/there/is/none"), 'stderr "/there/is/none": no such file or directory'),
        (IO("", "relative", "/dev/null"), 'stdout "relative": not an absolute path'),
        (IO("", "/dev/null", "/tmp"), 'stderr "/tmp": not a FIFO, file or device'),
        (IO("", "/dev/null", "/a\0b"), 'stderr "/a\\u0000b": embedded null byte'),
        (IO("", "/" + "a" * 300, "/dev/null"), f'stdout "/{"a" * 300}": file name too long'),
        (IO("file:///x", "file:///x", "file:///x"), 'stdin "file:///x": not an absolute path'),
        (IO("/dev/null", "", ""), "stdout is required where there is a terminal, stdin or stderr"),
        (IO("", "", "/dev/null"), "stdout is required where there is a terminal, stdin or stderr"),
        (IO(terminal=True), "stdout is required where there is a terminal, stdin or stderr"),
        (IO("", "/dev/null", ""), "stderr is required beside stdout, unless there is a terminal"),
    ],
)
async def test_stdio_that_is_not(io: IO, message: str) -> None:
    """Each error names its field."""
    with pytest.raises(errors.InvalidArgument) as caught:
        await checks.stdio(RUNC, io)
    assert str(caught.value) == f"{message}: invalid argument"


async def test_a_file_system_that_does_not_answer() -> None:
    """Only the caller that names it waits. Checks that hang are bounded in number and take no thread that others need;
    when they end, there is room again.
    """
    release, free = threading.Event(), threading.BoundedSemaphore(2)

    async def hangs(io: IO) -> None:
        await checks.stdio(RUNC, io, seconds=0.05, free=free, are_there=lambda paths: release.wait(20))

    try:
        with pytest.raises(
            errors.DeadlineExceeded, match='stdout "/dead/x", stderr "/dead/y": no answer from the file system'
        ):
            await hangs(IO("", "/dead/x", "/dead/y"))
        with pytest.raises(errors.DeadlineExceeded):
            await hangs(IO("", "/dead/x", "/dead/y"))
        with pytest.raises(
            errors.Unavailable,
            match='stdout "/dev/null", stderr "/dev/null": .* looks at other paths have had no answer',
        ):
            await hangs(IO("", "/dev/null", "/dev/null"))
        assert not [thread for thread in threading.enumerate() if thread.name == "stdio" and not thread.daemon]
    finally:
        release.set()

    async def there() -> bool:
        try:
            await checks.stdio(RUNC, IO("", "/dev/null", "/dev/null"), free=free)
        except errors.Unavailable:
            return False
        return True

    await eventually_async(there, "there is no room again")


async def test_a_look_that_cannot_be_begun_takes_no_others_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the machine has no more threads for a moment, creates are refused for that moment."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    out = place / "out"
    out.touch()
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refused)
        for _ in range(checks.STATS + 1):
            with pytest.raises(errors.Unavailable, match="can't start new thread"):
                await checks.stdio("/bin/shim", IO(stdout=str(out)))
    await checks.stdio("/bin/shim", IO(stdout=str(out)))
