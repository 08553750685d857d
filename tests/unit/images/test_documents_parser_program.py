"""Large documents are parsed by a program of their own, with the same results; only their callers wait."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.images.documents import manifests, parser_program
from services.images.documents.manifests import Config
from services.kit import errors, gojson
from services.oci import media_types
from services.oci.descriptors import Descriptor
from services.oci.digests import digest_of
from tests.support import TOP, eventually, eventually_async

ROOM = " " * parser_program.LARGE
INDEX = Descriptor(media_types.INDEX, digest_of(b"index"), 1)
ENTRIES = [Descriptor(media_types.MANIFEST, digest_of(b"%d" % n), n, {"a": "b"} if n % 2 else {}) for n in range(1000)]


def written(document: Any) -> bytes:
    return json.dumps(document).encode() + ROOM.encode()


def entries(*found: Descriptor) -> bytes:
    return written({"manifests": [manifests.descriptor_to_json(each) for each in found]})


@pytest.fixture
def program() -> Iterator[parser_program.Program]:
    made = parser_program.Program()
    yield made
    made.end()


def children(program: parser_program.Program, document: bytes) -> Any:
    return program.read(manifests.children_in, (document, INDEX), {})


def pid_of(program: parser_program.Program) -> int:
    assert program._process is not None
    return program._process.pid


@pytest.mark.parametrize("count", [0, 1, 1000])
async def test_what_is_found_is_the_same(count: int) -> None:
    """Lists come in several pieces."""
    assert await parser_program.read(entries(*ENTRIES[:count]), manifests.children_in, INDEX) == ENTRIES[:count]
    config = written({"os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:1"]}})
    assert await parser_program.read(config, Config.parse, "sha256:2") == Config.parse(config, "sha256:2")


async def test_errors_are_the_same() -> None:
    """They have the same words and classes; the program goes on."""
    for document in (
        written({"manifests": [{"digest": "x"}]}),
        written({"manifests": 7}),
        written(7)[1:] + b"]",
        written({"manifests": [{}] * (manifests.REFERENCES + 1)}),
    ):
        with pytest.raises(errors.NodeError) as expected:
            manifests.children_in(document, INDEX)
        with pytest.raises(type(expected.value)) as caught:
            await parser_program.read(document, manifests.children_in, INDEX)
        assert str(caught.value) == str(expected.value)
    with pytest.raises(gojson.Malformed) as malformed:
        await parser_program.read(written({"manifests": 7, "mediaType": [1]}), manifests.media_type_in)
    assert (malformed.value.where, malformed.value.why) == ("mediaType", "a list instead of a string")
    with pytest.raises(RuntimeError, match="reading a document: AttributeError"):
        await parser_program.read(written({}), manifests.children_in, "no descriptor")  # type: ignore[arg-type]
    assert await parser_program.read(entries(*ENTRIES), manifests.children_in, INDEX) == ENTRIES


def test_a_program_that_was_killed_is_started_again(program: parser_program.Program) -> None:
    """If it is killed while it is idle, no document fails."""
    children(program, entries())
    first = pid_of(program)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert children(program, entries(*ENTRIES)) == ENTRIES
    assert pid_of(program) != first


def test_a_program_that_ends_in_the_middle_says_so(program: parser_program.Program) -> None:
    """So does a program that does not answer: no call hangs."""
    with pytest.raises(
        errors.Internal, match=r"^the program that parses documents ended with exit code 3, see the service's log$"
    ):
        program.read(os._exit, (3,), {})
    program._silent = 0.2
    with pytest.raises(errors.Internal, match=r"^the program that parses documents did not answer for 0.2 s$"):
        program.read(signal.raise_signal, (signal.SIGSTOP,), {})
    program._silent = 60
    assert children(program, entries(*ENTRIES)) == ENTRIES


def test_a_program_without_work_ends(program: parser_program.Program) -> None:
    """It does not end if it had work meanwhile."""
    children(program, entries())
    running = pid_of(program)
    program.end_if_idle(program.read_so_far - 1)
    assert pid_of(program) == running
    program.end_if_idle(program.read_so_far)
    assert program._process is None
    with pytest.raises(ProcessLookupError):
        os.kill(running, 0)


async def test_the_end_of_the_service_waits_for_no_document(
    program: parser_program.Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for a document that is being parsed either: its caller gets an error."""

    async def started() -> bool:
        return program._process is not None

    monkeypatch.setattr(parser_program, "_PROGRAM", program)
    with parser_program.available():
        asked = asyncio.ensure_future(asyncio.to_thread(program.read, time.sleep, (60,), {}))
        await eventually_async(started)
    async with asyncio.timeout(20):
        with pytest.raises(errors.Internal, match="the program that parses documents ended with signal 9"):
            await asked


def test_the_program_has_the_code_of_its_service(tmp_path: Path) -> None:
    """The installation is replaced by one that cannot even be imported, as by an upgrade below a running service."""
    shutil.copytree(TOP / "services", tmp_path / "services")
    (tmp_path / "document").write_bytes(entries(*ENTRIES))
    (tmp_path / "user").write_text(USER)
    done = subprocess.run(
        [sys.executable, "-P", tmp_path / "user", tmp_path],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1000\n"), done.stderr


USER = """
import asyncio, shutil, sys
from pathlib import Path
from services.images.documents import manifests, parser_program

place = Path(sys.argv[1])
with parser_program.available():
    for path in (place / "services").rglob("*.py"):
        path.write_text("raise SystemExit('this is the new code')")
    shutil.rmtree(place / "services/kit")
    print(len(asyncio.run(parser_program.read((place / "document").read_bytes(), manifests.children_in, manifests.Descriptor(manifests.INDEX, "x", 1)))))
"""
