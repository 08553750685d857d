"""Helpers of the tests on real registries: a registry and crane as ``go install`` builds them, and the operations with
each on a node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from deploy.samples import Image
from services.kit.rpc import Channel
from tests.interop.programs import go_program
from tests.pulls import Client, arriving, check_nothing_left, check_pulled, large, pulling, runnable
from tests.support import Node, eventually


def crane(*words: str) -> str:
    """Return the output of crane."""
    done = subprocess.run(
        [go_program("crane"), *words, "--insecure"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"crane {' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


@contextlib.contextmanager
def crane_registry(directory: Path) -> Iterator[str]:
    """Run ``crane registry serve``; return its host."""
    port = _free_port()
    with _running(
        [go_program("crane"), "registry", "serve", "--address", f"127.0.0.1:{port}", "--disk", str(directory)],
        port,
        directory,
    ):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def distribution_registry(directory: Path) -> Iterator[str]:
    """Run the registry of distribution; return its host."""
    port = _free_port()
    (directory / "config.json").write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
                "http": {"addr": f"127.0.0.1:{port}"},
            }
        )
    )
    with _running([go_program("registry"), "serve", str(directory / "config.json")], port, directory):
        yield f"127.0.0.1:{port}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(command: list[str], port: int, directory: Path) -> Iterator[None]:
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        eventually(lambda: _listens(port), f"{command[0]} does not listen: {(directory / 'log').read_text()[-2000:]}")
        yield
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def oci_layout(box: Image, directory: Path) -> Path:
    """Return an image as a directory that crane pushes."""
    directory.mkdir()
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (directory / "index.json").write_text(
        json.dumps(
            {
                "schemaVersion": 2,
                "manifests": [{"mediaType": box.media_type, "digest": box.digest, "size": len(box.blobs[box.digest])}],
            }
        )
    )
    for digest, data in box.blobs.items():
        path = directory / "blobs" / digest.replace(":", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


class Relay:
    """A port before a registry's, which relays until ``left`` bytes of answers have passed, and then nothing; None
    means everything.
    """

    def __init__(self, host: str) -> None:
        self._port = int(host.rpartition(":")[2])
        self.left: int | None = None
        self.host = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        serving = set[asyncio.Task[None]]()

        # a coroutine would be a task of asyncio's own, which logs that it was cancelled
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(reader, writer))
            serving.add(task)
            task.add_done_callback(serving.discard)

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
            self.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            try:
                yield self
            finally:
                server.close()
                for task in serving:
                    task.cancel()
                await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            there, here = await asyncio.open_connection("127.0.0.1", self._port)
            # either side hung up, as a client that is interrupted does
            with contextlib.closing(here), contextlib.suppress(OSError):
                await asyncio.gather(self._passed(reader, here, counts=False), self._passed(there, writer, counts=True))

    async def _passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool) -> None:
        while data := await reader.read(1 << 16):
            if counts and self.left is not None:
                data, self.left = data[: self.left], max(0, self.left - len(data))
            writer.write(data)
            await writer.drain()
        writer.close()


# ---------------------------------------------------------------------------------------------- what is done


async def pushed_by_crane_and_pulled(node: Node, channel: Channel, host: str, directory: Path) -> None:
    """crane pushes an image with a large layer, the node pulls and runs it and pushes it under another name; crane
    validates that.
    """
    box, client = large(), Client(channel, f"pulled-{directory.name}")
    reference = f"{host}/team/box:1"
    await asyncio.to_thread(crane, "push", str(oci_layout(box, directory / "box")), reference)
    assert await asyncio.to_thread(crane, "digest", reference) == box.digest
    async with asyncio.timeout(60):
        assert not await pulling(node, client, reference).ended
    assert (await client.images())[reference].target.digest == box.digest
    assert await client.blobs() == set(box.blobs)
    for to in (f"{host}/team/again:1", f"{host}/elsewhere/box:2"):
        for _ in range(2):  # the second time all is there
            done = await asyncio.to_thread(
                node.splitd, "push", "--plain-http", "-n", client.namespace, "--source", reference, f"{to}@{box.digest}"
            )
            assert done.stdout.startswith(f"pushed {to}@{box.digest}: ")
        assert await asyncio.to_thread(crane, "digest", to) == box.digest
        await asyncio.to_thread(crane, "validate", "--remote", to)
    await asyncio.to_thread(crane, "pull", "--format", "oci", f"{host}/team/again:1", str(directory / "back"))
    for digest, data in box.blobs.items():
        assert (directory / "back" / "blobs" / digest.replace(":", "/")).read_bytes() == data


async def cut_and_gone_on_with(node: Node, channel: Channel, host: str, directory: Path, *, of_large: bool) -> None:
    """Interrupt a pull in the middle of a layer and repeat it: the image is right and runs."""
    box, client = (large() if of_large else runnable(kib=6000)), Client(channel, f"cut-{directory.name}")
    async with Relay(host).running() as relay:
        reference = f"{relay.host}/team/cut:1"
        await asyncio.to_thread(crane, "push", str(oci_layout(box, directory / "box")), f"{host}/team/cut:1")
        size = len(box.blobs[box.layers[1]])
        relay.left = len(box.blobs[box.layers[0]]) + size // 2
        begun = pulling(node, client, reference)
        await arriving(begun.ended, client, box.layers[1], 1 << 20)
        begun.interrupt()
        assert await begun.ended
        await client.end_own_leases()
        kept = await client.offset(f"layer-{box.layers[1]}")
        assert 1 << 20 <= kept < size  # of parts that come beside each other, what follows on the first byte
        relay.left = None
        async with asyncio.timeout(60):
            assert not await pulling(node, client, reference).ended
        await check_pulled(node, client, reference, box)
        await check_nothing_left(node, channel, client)
