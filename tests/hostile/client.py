"""A hostile client of a node: ``python -m tests.hostile.client SOCKET SEED CONNECTIONS [KIND ...]`` runs until its
standard input ends.

Each connection is a worker that makes one kind of attack after the other, each with an input of
:mod:`tests.hostile.inputs`. The registries and token servers from which it pulls are its own too. Any answer to a call
is accepted that comes within :data:`PATIENCE` seconds and is not "internal error". It writes an empty object when it
begins, and at the end one JSON object: how often each kind was tried, the codes of the answers, and faults, each with
the seed that reproduces it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.empty_pb2 import Empty

from api.containerd.events import image_pb2, task_pb2
from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.events.v1 import events_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.leases.v1 import leases_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from api.containerd.services.tasks.v1 import tasks_pb2
from api.containerd.services.version.v1 import version_pb2
from api.containerd.types.transfer import imagestore_pb2
from bench.hostile import Raw
from services.kit import errors
from services.kit.any import pack
from services.kit.rpc import Channel
from services.oci.digests import digest_of
from services.wire import frames
from tests.fake_registry import Auth, FakeRegistry, encoded, says
from tests.hostile import inputs
from tests.pulls import Client
from tests.suites.transfers import NAMED

PATIENCE = 60.0
NAMESPACE = "hostile"


class Attacker:
    """One connection. ``number`` is its own, and is in the names of what it makes."""

    def __init__(
        self, socket: Path, number: int, seed: int, open_: FakeRegistry, closed: FakeRegistry, kinds: Sequence[str]
    ) -> None:
        self.socket = socket
        self.number = number
        self.seed = seed
        self.open, self.closed = open_, closed
        self.kinds = [kind for kind in KINDS if not kinds or kind.__name__ in kinds]
        self.tried: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.faults: list[str] = []
        self.headers: dict[str, str | bytes] = {"containerd-namespace": NAMESPACE}

    async def run(self, until: asyncio.Event) -> None:
        """Attack until told to stop."""
        async with Channel(self.socket) as channel:
            self.channel = channel
            while not until.is_set():
                seed = self.seed
                self.seed += 1
                rng = random.Random(seed)
                kind = rng.choice(self.kinds)
                name = kind.__name__
                self.tried[name] += 1
                try:
                    async with asyncio.timeout(PATIENCE):
                        await kind(self, rng)
                    self.answered["OK"] += 1
                except TimeoutError:
                    self.faults.append(f"{name}, seed {seed}: not answered within {PATIENCE:g} s")
                except errors.Internal as error:
                    self.faults.append(f"{name}, seed {seed}: {error}")
                except errors.NodeError as error:
                    self.answered[type(error).__name__] += 1
                    if "internal error" in str(error):
                        self.faults.append(f"{name}, seed {seed}: {error}")

    def service(self, module: Any, name: str) -> Any:
        return self.channel.client(module.DESCRIPTOR.services_by_name[name])

    def client(self) -> Client:
        return Client(self.channel, NAMESPACE)

    # ---------------------------------------------------------------------------------------------- kinds

    async def filters(self, rng: random.Random) -> None:
        """Lists of each service that has filters."""
        _, wanted = inputs.filters(rng)
        match rng.randrange(5):
            case 0:
                await self.service(images_pb2, "Images").List(
                    images_pb2.ListImagesRequest(filters=wanted), headers=self.headers
                )
            case 1:
                await self.service(containers_pb2, "Containers").List(
                    containers_pb2.ListContainersRequest(filters=wanted), headers=self.headers
                )
            case 2:
                await self.service(leases_pb2, "Leases").List(
                    leases_pb2.ListRequest(filters=wanted), headers=self.headers
                )
            case 3:
                async for _ in self.service(content_pb2, "Content").List(
                    content_pb2.ListContentRequest(filters=wanted), headers=self.headers
                ):
                    pass
            case _:
                async for _ in self.service(snapshots_pb2, "Snapshots").List(
                    snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs", filters=wanted), headers=self.headers
                ):
                    pass

    async def subscribers(self, rng: random.Random) -> None:
        """Subscribers with filters that do not read, and events that match some of them."""
        events = self.service(events_pb2, "Events")
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(10):
                _, wanted = inputs.filters(rng)
                reading = asyncio.ensure_future(
                    _first(events.Subscribe(events_pb2.SubscribeRequest(filters=wanted), headers=self.headers))
                )
                stack.callback(reading.cancel)
            for n in range(50):
                event = rng.choice(
                    (
                        image_pb2.ImageCreate(name="ab" * rng.choice((10, 1000, 100_000)) + "!"),
                        task_pb2.TaskExit(container_id="a" * rng.choice((10, 1_000_000)), pid=n),
                    )
                )
                await events.Publish(
                    events_pb2.PublishRequest(
                        topic=rng.choice(("/images/create", "/tasks/exit", "/x")), event=pack(event)
                    ),
                    headers=self.headers,
                )

    async def calls_with_headers(self, rng: random.Random) -> None:
        _, odd = inputs.headers(rng)
        await self.service(images_pb2, "Images").List(images_pb2.ListImagesRequest(), headers={**self.headers, **odd})

    async def records(self, rng: random.Random) -> None:
        """Containers, images, leases and snapshots with odd names, labels and specs; they are deleted afterwards."""
        name = rng.choice((f"h{self.number}", "x" * rng.choice((76, 77, 5000)), "a/b", "\x1b[2J", ""))
        try:
            match rng.randrange(4):
                case 0:
                    containers = self.service(containers_pb2, "Containers")
                    container = containers_pb2.Container(
                        id=name,
                        labels=inputs.labels(rng),
                        runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2"),
                        spec=AnyPb(
                            type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=inputs.spec(rng)[1]
                        ),
                    )
                    await containers.Create(
                        containers_pb2.CreateContainerRequest(container=container), headers=self.headers
                    )
                    await containers.Delete(containers_pb2.DeleteContainerRequest(id=name), headers=self.headers)
                case 1:
                    images = self.service(images_pb2, "Images")
                    image = images_pb2.Image(name=name, labels=inputs.labels(rng))
                    image.target.digest, image.target.size = (
                        str(rng.choice(inputs.WORDS)).encode(errors="replace").decode(),
                        rng.choice((-1, 0, 1, 1 << 62)),
                    )
                    await images.Create(images_pb2.CreateImageRequest(image=image), headers=self.headers)
                    await images.Delete(images_pb2.DeleteImageRequest(name=name), headers=self.headers)
                case 2:
                    leases = self.service(leases_pb2, "Leases")
                    await leases.Create(
                        leases_pb2.CreateRequest(id=name, labels=inputs.labels(rng)), headers=self.headers
                    )
                    await leases.Delete(leases_pb2.DeleteRequest(id=name), headers=self.headers)
                case _:
                    snapshots = self.service(snapshots_pb2, "Snapshots")
                    await snapshots.Prepare(
                        snapshots_pb2.PrepareSnapshotRequest(
                            snapshotter=rng.choice(("overlayfs", "native", "none")), key=name, labels=inputs.labels(rng)
                        ),
                        headers=self.headers,
                    )
                    await snapshots.Remove(
                        snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=name), headers=self.headers
                    )
        except errors.AlreadyExists:
            pass

    async def tasks(self, rng: random.Random) -> None:
        """Calls about tasks of containers that do not exist: no shim is called."""
        tasks = self.service(tasks_pb2, "Tasks")
        name, exec_id = f"none-{rng.randrange(1000)}", rng.choice(("", "e", "x" * 5000))
        match rng.randrange(4):
            case 0:
                await tasks.Create(tasks_pb2.CreateTaskRequest(container_id=name, stdout="/none"), headers=self.headers)
            case 1:
                await tasks.Start(tasks_pb2.StartRequest(container_id=name, exec_id=exec_id), headers=self.headers)
            case 2:
                await tasks.Wait(tasks_pb2.WaitRequest(container_id=name, exec_id=exec_id), headers=self.headers)
            case _:
                await tasks.Metrics(tasks_pb2.MetricsRequest(filters=inputs.filters(rng)[1]), headers=self.headers)

    async def writes(self, rng: random.Random) -> None:
        """Blobs of another size or digest than announced, invalid offsets, and writes that are given up."""
        data, digest = inputs.blob(rng)
        ref = f"h{self.number}"
        content = self.service(content_pb2, "Content")
        with contextlib.suppress(errors.NotFound):
            await content.Abort(content_pb2.AbortRequest(ref=ref), headers=self.headers)
        async with content.Write(headers=self.headers) as stream:
            await stream.send(
                content_pb2.WriteContentRequest(
                    action=content_pb2.WriteAction.WRITE,
                    ref=ref,
                    data=data,
                    offset=rng.choice((0, 0, 0, -1, 7, 1 << 62)),
                )
            )
            await stream.receive()
            if rng.random() < 0.3:
                return
            expected = rng.choice((digest, digest_of(b"other"), "sha256:", ""))
            await stream.send(
                content_pb2.WriteContentRequest(
                    action=content_pb2.WriteAction.COMMIT,
                    ref=ref,
                    offset=len(data),
                    total=rng.choice((len(data), 0, -1, 1 << 62)),
                    expected=expected,
                )
            )
            await stream.receive()

    async def cancelled(self, rng: random.Random) -> None:
        """Calls that are begun and given up."""
        version = self.service(version_pb2, "Version")
        calls = [asyncio.ensure_future(version.Version(Empty(), headers=self.headers)) for _ in range(100)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await version.Version(Empty(), headers=self.headers)

    async def frames(self, rng: random.Random) -> None:
        """A connection with bytes that are nearly HTTP/2."""
        _, data = inputs.frames(rng)

        def speak() -> None:
            with contextlib.suppress(OSError), Raw(self.socket) as raw:
                raw.say(frames.PREFACE[: rng.randrange(1, 24)] if rng.random() < 0.1 else data)
                raw.socket.settimeout(0.05)
                raw.socket.recv(1 << 16)

        await asyncio.to_thread(speak)

    async def documents(self, rng: random.Random) -> None:
        """A pull of a document that is no image."""
        repository = f"doc{self.number}"
        if rng.random() < 0.15:
            _, found, data = inputs.nested(rng)
            media_type = inputs.INDEX
            for digest, document in found.items():
                self.open.manifests[repository, digest] = (media_type, document)
        else:
            _, media_type, data = inputs.document(rng)
        self.open.manifests[repository, "1"] = self.open.manifests[repository, digest_of(data)] = (media_type, data)
        try:
            await self.client().pull(f"{self.open.host}/{repository}:1", unpack=False)
        finally:
            for key in [key for key in self.open.manifests if key[0] == repository]:
                del self.open.manifests[key]

    async def layers(self, rng: random.Random) -> None:
        """A pull of damaged layers into the snapshotter."""
        _, image = inputs.layered(rng)
        name = f"layers{self.number}:1"
        reference = self.open.add(image, name)
        if rng.random() < 0.2:
            self.open.inject(
                f"layers{self.number}/", encoded(self.open, *inputs.encoding(rng)), times=rng.randint(1, 5)
            )
        elif rng.random() < 0.3:
            self.open.inject(f"layers{self.number}/", says(inputs.config(rng, 2)[1].decode(errors="replace")))
        try:
            await self.client().pull(reference)
            await self.client().delete_image(reference)
        finally:
            for digest in image.blobs:
                self.open.blobs.pop(digest, None)

    async def tokens(self, rng: random.Random) -> None:
        """A pull from a registry whose token server gives odd answers."""
        self.closed.inject("token", says(inputs.token(rng)[1].decode(errors="replace")))
        await self.client().pull(f"{self.closed.host}/a{self.number}:1", unpack=False)

    async def archives(self, rng: random.Random) -> None:
        """An import."""
        _, data = inputs.archive(rng)
        await self.client().import_(
            data, imagestore_pb2.ImageStore(name=f"archive{self.number}", extra_references=[NAMED])
        )


async def _first(answers: AsyncIterator[Any]) -> None:
    """Read one message, and then no more."""
    with contextlib.suppress(errors.NodeError):
        await anext(answers, None)
        await asyncio.Event().wait()


KINDS: tuple[Callable[[Attacker, random.Random], Awaitable[None]], ...] = (
    Attacker.filters,
    Attacker.filters,
    Attacker.subscribers,
    Attacker.calls_with_headers,
    Attacker.records,
    Attacker.records,
    Attacker.tasks,
    Attacker.writes,
    Attacker.cancelled,
    Attacker.frames,
    Attacker.documents,
    Attacker.documents,
    Attacker.layers,
    Attacker.tokens,
    Attacker.archives,
)


async def main(socket: Path, seed: int, connections: int, kinds: Sequence[str]) -> dict[str, Any]:
    """Attack until standard input ends, and return the results."""
    until = asyncio.Event()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with FakeRegistry() as open_, FakeRegistry(auth=Auth(user="u", password="p")) as closed:
        attackers = [
            Attacker(socket, number, (seed * connections + number) << 20, open_, closed, kinds)
            for number in range(connections)
        ]
        running = [asyncio.ensure_future(attacker.run(until)) for attacker in attackers]
        print("{}", flush=True)
        await reader.read()
        until.set()
        await asyncio.gather(*running)
    return {
        "tried": dict(sum((a.tried for a in attackers), Counter())),
        "answered": dict(sum((a.answered for a in attackers), Counter())),
        "faults": [fault for a in attackers for fault in a.faults],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))))
