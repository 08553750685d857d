"""An honest client of a node: ``python -m tests.hostile.honest SOCKET SEED``. It is a program of its own, since what
else a test does in its process would count as time of the calls.

It writes an empty object when it is ready. The next line on its standard input begins: it makes four calls in turn, and
measures each. The line after that ends: it writes what it measured, as one JSON object. A call that fails, or is not
answered within :data:`PATIENCE` seconds, ends the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.tasks.v1 import tasks_pb2
from api.containerd.services.version.v1 import version_pb2
from services.kit import errors, process
from services.kit.rpc import Channel

PATIENCE = 10.0
"""Seconds for a call of an honest client: far more than it takes, so that only a hanging call is late."""
HEADERS = {"containerd-namespace": "honest"}
MIB = 1 << 20
PAUSE = 0.005


class Honest:
    """A client that makes four calls in turn, and measures each."""

    def __init__(self, channel: Channel, seed: int) -> None:
        def service(module: Any, name: str) -> Any:
            return channel.client(module.DESCRIPTOR.services_by_name[name])

        self.version, self.images, self.content, self.tasks = (
            service(version_pb2, "Version"),
            service(images_pb2, "Images"),
            service(content_pb2, "Content"),
            service(tasks_pb2, "Tasks"),
        )
        self._took: defaultdict[str, list[float]] = defaultdict(list)
        self._rng = random.Random(seed)

    async def begin(self) -> None:
        image = images_pb2.Image(name="honest")
        image.target.digest, image.target.media_type, image.target.size = "sha256:" + "a" * 64, "x", 1
        await self.images.Create(images_pb2.CreateImageRequest(image=image), headers=HEADERS, timeout=PATIENCE)

    async def round(self) -> None:
        """Make each call once; the first that fails is raised."""
        data = self._rng.randbytes(MIB)  # before the clock runs: it takes as long as a Write alone
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for name, call in (
            ("Version", lambda: self.version.Version(Empty(), headers=HEADERS, timeout=PATIENCE)),
            (
                "Images.Get",
                lambda: self.images.Get(images_pb2.GetImageRequest(name="honest"), headers=HEADERS, timeout=PATIENCE),
            ),
            ("Write 1 MiB", lambda: self._write(data, digest)),
            ("Tasks.List", lambda: self.tasks.List(tasks_pb2.ListTasksRequest(), headers=HEADERS, timeout=PATIENCE)),
        ):
            begun = time.perf_counter()
            await call()
            self._took[name].append(time.perf_counter() - begun)
        with contextlib.suppress(errors.NotFound):  # nothing holds it: the collector may have been faster
            await self.content.Delete(
                content_pb2.DeleteContentRequest(digest=digest), headers=HEADERS, timeout=PATIENCE
            )
        await asyncio.sleep(PAUSE)

    async def _write(self, data: bytes, digest: str) -> None:
        async with self.content.Write(headers=HEADERS, timeout=PATIENCE) as stream:
            await stream.send(
                content_pb2.WriteContentRequest(
                    action=content_pb2.WriteAction.COMMIT, ref=digest, data=data, total=MIB, expected=digest
                )
            )
            while await stream.receive() is not None:
                pass

    def measured(self) -> dict[str, dict[str, float]]:
        """Return the seconds of each call at the 99th percentile and at the median, and how often it was made; begin
        anew.
        """
        found = {
            name: {
                "p99": sorted(took)[int(len(took) * 0.99)],
                "median": statistics.median(took),
                "calls": float(len(took)),
            }
            for name, took in self._took.items()
        }
        self._took.clear()
        return found


async def main(socket: Path, seed: int) -> None:
    """Serve standard input until its end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with Channel(socket) as channel:
        honest = Honest(channel, seed)
        await honest.begin()
        print("{}", flush=True)
        while await reader.readline():
            ended = asyncio.ensure_future(reader.readline())
            while not ended.done():
                await honest.round()
            print(json.dumps(honest.measured()), flush=True)


if __name__ == "__main__":
    process.tune()  # a garbage collection of all modules would be a slow call
    process.run_loop(main(Path(sys.argv[1]), int(sys.argv[2])))
