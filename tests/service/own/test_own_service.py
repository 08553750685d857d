"""A service of one's own as a process: its traces, its log, its end, and the test that ``splitd new`` writes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.kit import errors, rpc
from services.kit.addresses import Address
from services.snapshots.remote import RemoteSnapshotter
from splitd.files import remove_tree
from tests.collector import Collector
from tests.fake_registry import Authority
from tests.support import (
    TOP,
    OwnService,
    ServiceProcess,
    directory_with_attributes,
    eventually,
    eventually_async,
    splitd,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}

SLOW = """
import sys, time
sys.path.insert(0, {examples!r})
from overlay import Overlay
from splitd import service

class Slow(Overlay):
    def stat(self, key):
        self.directory.with_name("stat").touch()
        time.sleep({seconds})
        if key == "bug":
            return self.nothing
        return super().stat(key)

service.main(Slow)
"""


def slow(place: Path, seconds: float) -> Path:
    """A snapshotter whose ``stat`` takes a while."""
    program = place / "slow.py"
    program.write_text(SLOW.format(examples=str(TOP / "examples"), seconds=seconds))
    return program


async def ask(service: OwnService, key: str = "none") -> None:
    async with rpc.Channel(service.sockets[0]) as channel:
        with pytest.raises(errors.NotFound):
            await RemoteSnapshotter(channel, headers=HEADERS).stat(key)


async def test_its_spans_go_to_a_collector(place: Path) -> None:
    """The variables OTEL_... name one; the service continues the caller's trace, under its program's name."""
    collector = Collector(place / "otlp.sock")
    with OwnService(slow(place, 0.02), place, env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}) as service:
        await ask(service)
    found = eventually(lambda: collector.spans(TRACE), "no span came")
    [span] = [span for span in found if span.name.endswith("/Stat")]
    assert (span.service, span.parent) == ("splitd-slow", "00f067aa0ba902b7")


@pytest.mark.root
async def test_its_spans_go_to_a_node(place: Path) -> None:
    """--state names the node; its traces service has the span."""
    with (
        ServiceProcess("services.traces", place / "t", place / "n"),
        OwnService(slow(place, 0.02), place, "--state", str(place / "n")) as service,
    ):
        await ask(service)

        def shown() -> bool:
            done = splitd("trace", "show", TRACE, "--root", place / "t", "--state", place / "n", ok=None)
            return "slow" in done.stdout and "Stat" in done.stdout

        eventually(shown, "the node's traces service has no span of it")


async def test_a_port_with_tls_lets_in_who_has_a_certificate(place: Path) -> None:
    """--cert and --key are the service's certificate, --ca is who signs its clients'. Files that cannot be used are named
    at the start. They are read again when they change; those that cannot be used then change nothing.
    """
    ours, theirs = Authority(place / "ours"), Authority(place / "theirs")
    cert, key = ours.issue("service")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [sys.executable, str(TOP / "examples/overlay.py"), "--root", str(place / "r"), "--address", address]
    words += ["--cert", str(cert), "--ca", str(ours.certificate)]
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    wrong = [*words, "--key", str(theirs.issue("other")[1])]
    done = subprocess.run(wrong, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert "it is not the key of certificate" in done.stderr

    authority = place / "authority"  # which signed the service's certificate
    shutil.copy(ours.certificate, authority)
    friend, stranger = ours.issue("client"), theirs.issue("client")

    async def is_answered(mine: Path, its_key: Path) -> bool:
        where = Address(address=address, ca=str(authority), cert=str(mine), key=str(its_key))
        async with rpc.Channel(where) as channel:

            async def settled() -> bool:
                return channel.connected() or bool(channel.trouble)

            with contextlib.suppress(AssertionError):  # grpcio does not tell its trouble
                await eventually_async(settled, seconds=5)
            try:
                return channel.connected() and [info async for info in RemoteSnapshotter(channel).list()] == []
            except errors.Unavailable:
                return False

    with (
        (place / "log").open("wb") as log,
        subprocess.Popen([*words, "--key", str(key)], env=environment, stderr=log) as process,
    ):
        try:
            await eventually_async(lambda: is_answered(*friend), "it does not answer", 30)
            assert not await is_answered(*stranger)
            for new, old in zip(
                (theirs.certificate, *theirs.issue("service")), (ours.certificate, cert, key), strict=True
            ):
                shutil.copy(new, old)
            shutil.copy(theirs.certificate, authority)
            assert await is_answered(*stranger)
            assert not await is_answered(*friend)
            cert.write_text("nothing")
            assert await is_answered(*stranger)
            assert (
                f"with the certificates from before: cert {cert}: it has no certificate" in (place / "log").read_text()
            )
        finally:
            process.terminate()


@pytest.mark.root
def test_what_is_mounted_in_a_tree_is_not_removed(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be a container's volume. The tree goes once it is unmounted."""
    volume = place / "d/volume"
    volume.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", volume], check=True)
    try:
        (volume / "kept").write_text("x")
        assert not remove_tree(place / "d")
        assert (volume / "kept").read_text() == "x"
        assert "cannot be removed" in caplog.text
    finally:
        subprocess.run(["umount", volume], check=True)
    assert remove_tree(place / "d")


async def test_a_bug_is_in_the_log_and_the_client_gets_internal(place: Path) -> None:
    """With its traceback, once; other calls go on."""
    with OwnService(slow(place, 0), place) as service:
        async with rpc.Channel(service.sockets[0]) as channel:
            with pytest.raises(errors.Internal):
                await RemoteSnapshotter(channel).stat("bug")
        await ask(service)
        assert service.text().count("AttributeError: 'Slow' object has no attribute 'nothing'") == 1


async def test_calls_end_before_the_process_does(place: Path) -> None:
    """After SIGTERM, a call that is under way is answered."""
    with OwnService(slow(place, 1.0), place) as service:
        async with rpc.Channel(service.sockets[0]) as channel:
            call = asyncio.ensure_future(RemoteSnapshotter(channel).stat("none"))
            await asyncio.to_thread(eventually, (place / "r/stat").exists, "its stat has not begun")
            os.kill(service.pid, signal.SIGTERM)
            with pytest.raises(errors.NotFound):
                await call
        assert service.wait() == 0


def test_what_new_makes_keeps_the_promises() -> None:
    """The test that it writes passes on the program that it writes. (A snapshotter's: docs/write-a-service.md.)"""
    with directory_with_attributes() as directory:
        splitd("new", "content", "mine-too", directory / "w")
        done = subprocess.run(
            [directory / "w/test_mine_too.py"],
            env={**os.environ, "TMPDIR": str(directory)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conforms" in done.stdout
