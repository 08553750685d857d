"""Leases of transfers, over a metadata process in the gateway's place: none survives the process that made it by more
than a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from api.containerd.services.leases.v1 import leases_pb2 as pb
from api.containerd.services.leases.v1 import leases_stubs
from services.images.node.leases_remote import INCARNATION, Leases
from services.kit.rpc import NAMESPACE, Channel
from tests.support import ServiceProcess, eventually_async, short_directory

SPACES = ("one", "two")


@pytest.fixture
def metadata() -> Iterator[ServiceProcess]:
    with short_directory() as place, ServiceProcess("services.metadata", place / "root", place / "state") as running:
        yield running


@pytest.fixture
async def channel(metadata: ServiceProcess) -> AsyncIterator[Channel]:
    async with Channel(metadata.state / "metadata.sock") as channel:
        yield channel


async def there(channel: Channel) -> dict[str, dict[str, dict[str, str]]]:
    """Return labels by id, by namespace."""
    client = channel.client(leases_stubs.LEASES)
    return {
        space: {
            each.id: dict(each.labels)
            for each in (await client.List(pb.ListRequest(), headers={NAMESPACE: space})).leases
        }
        for space in SPACES
    }


async def cut_off(channel: Channel) -> None:
    """Leave a lease in each namespace, made by a process that is gone."""
    client = channel.client(leases_stubs.LEASES)
    for space in SPACES:
        await client.Create(
            pb.CreateRequest(id="dead", labels={INCARNATION: "an earlier one"}), headers={NAMESPACE: space}
        )


async def test_a_lease_lasts_as_long_as_its_block(channel: Channel) -> None:
    """The lease has an expiry as a last resort and labels that name its process; a cancelled block ends it too."""
    leases = Leases(channel)
    async with leases.lease({NAMESPACE: "one"}) as lease:
        (found,) = (await there(channel))["one"].values()
        assert set(found) == {"containerd.io/gc.expire", INCARNATION}
        assert lease in (await there(channel))["one"]
    assert not (await there(channel))["one"]
    held = asyncio.Event()

    async def block() -> None:
        async with leases.lease({NAMESPACE: "one"}):
            held.set()
            await asyncio.Event().wait()

    blocked = asyncio.ensure_future(block())
    await held.wait()
    blocked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await blocked
    assert not (await there(channel))["one"]


async def test_those_of_the_dead_are_ended(channel: Channel) -> None:
    """They are ended in every namespace. Leases of clients and of the running process stay."""
    client = channel.client(leases_stubs.LEASES)
    await client.Create(
        pb.CreateRequest(id="clients", labels={"containerd.io/gc.expire": "2100-01-01T00:00:00Z"}),
        headers={NAMESPACE: "one"},
    )
    await cut_off(channel)
    assert [len(each) for each in (await there(channel)).values()] == [2, 1]
    leases = Leases(channel)
    async with leases.lease({NAMESPACE: "two"}) as lease, leases.running():

        async def ended() -> bool:
            return {space: set(found) for space, found in (await there(channel)).items()} == {
                "one": {"clients"},
                "two": {lease},
            }

        await eventually_async(ended)


async def test_calls_do_not_wait_for_an_absent_gateway(metadata: ServiceProcess, channel: Channel) -> None:
    """Leases of ended processes are ended when the gateway is back; so are our own that could not be ended in time."""
    await cut_off(channel)
    leases = Leases(channel)
    async with leases.lease({NAMESPACE: "one"}):
        metadata.kill()
        async with asyncio.timeout(10):
            running = leases.running()
            await running.__aenter__()
    try:
        metadata.start()
        await channel.wait_connected(5)

        async def ended() -> bool:
            return not any((await there(channel)).values())

        await eventually_async(ended)
    finally:
        await running.__aexit__(None, None, None)
