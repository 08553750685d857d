"""Fetches and their claims, where etcd or the process ``fleet`` is slow, or its answer is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from api.splitd.fleet.v1 import fleet_pb2 as pb
from api.splitd.fleet.v1 import fleet_stubs
from services.etcd.memory import MemoryEtcd
from services.etcd.store import Committed, Conflict, Delete, Mod, Operation, Put, Uncertain
from services.fleet.remote import RemoteFleet
from services.fleet.store import LONGEST, NOBODY, PATIENCE, Claim
from services.kit import loops, rpc
from services.kit.rpc import Call
from services.oci.digests import Digest
from tests.suites.fleet import BLOB, peers
from tests.support import eventually_async, within
from tests.unit.fleet.test_fleet_node import PREFIX, has_keys, member

OTHER = Digest.parse("sha256:" + "9" * 64)


class SlowServicer:
    """A fleet that answers nothing while ``busy``, and then takes what was told meanwhile."""

    SERVICE = fleet_stubs.FLEET

    def __init__(self) -> None:
        self.told: list[pb.FetchRequest] = []
        self.ended = 0
        self.idle = asyncio.Event()

    async def Find(self, request: pb.FindRequest, call: Call) -> pb.FindResponse:
        await self.idle.wait()
        return pb.FindResponse()

    async def Fetch(self, requests: AsyncIterator[pb.FetchRequest], call: Call) -> AsyncIterator[pb.FetchResponse]:
        await self.idle.wait()
        async for request in requests:
            self.told.append(request)
            if request.claim:
                yield pb.FetchResponse(node="a", ours=True)
        self.ended += 1


@contextlib.asynccontextmanager
async def slow(place: Path) -> AsyncIterator[tuple[SlowServicer, RemoteFleet]]:
    servicer = SlowServicer()
    async with (
        rpc.serving(place / "fleet.sock", [servicer], grace=0.1),
        rpc.Channel(place / "fleet.sock", "fleet") as channel,
    ):
        await channel.reached(5)
        yield servicer, RemoteFleet(channel)
        servicer.idle.set()


async def test_what_is_told_last_arrives_and_the_pull_does_not_wait_for_it(place: Path) -> None:
    """Else those who read the blob while it arrives would be broken off at its end."""
    async with slow(place) as (servicer, fleet):
        async with fleet.fetching("default", BLOB, 100) as fetch:
            fetch.arrived("/file", 60)
            fetch.arrived("/file", 100)
        assert not servicer.told
        servicer.idle.set()

        async def ended() -> bool:
            return servicer.ended == 1

        await eventually_async(ended)
        assert [each.have for each in servicer.told][-1] == 100


async def test_a_silent_fleet_is_waited_for_once(place: Path) -> None:
    """Further questions get a moment, until one is answered."""
    async with slow(place) as (servicer, fleet):
        with within(LONGEST, at_least=PATIENCE):
            for _ in range(10):
                assert await peers(fleet) == []
        servicer.idle.set()

        async def answered() -> bool:
            async with fleet.fetching("default", BLOB, 100) as fetch:
                return await fetch.claim() == Claim("a", True)

        await eventually_async(answered)


class LossyEtcd(MemoryEtcd):
    """Keeps the answer to a claim, or to a deletion, for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.losing = False
        self.holding: asyncio.Event | None = None
        """Deletions are answered once it is set."""
        self.claiming: asyncio.Event | None = None
        """Claims are written once it is set."""
        self.claims = 0
        """How many wait for that."""

    async def commit(
        self, operations: Sequence[Operation], compares: Sequence[Mod] = (), *, seconds: float = 0.0
    ) -> Committed | Conflict:
        if self.claiming is not None and any(
            isinstance(each, Put) and b"/fetching/" in each.key for each in operations
        ):
            self.claims += 1
            await self.claiming.wait()
        found = await super().commit(operations, compares, seconds=seconds)
        if self.losing and compares:
            raise Uncertain("the answer is lost")
        if self.holding is not None and any(isinstance(each, Delete) for each in operations):
            await self.holding.wait()
        return found


async def test_a_late_answer_makes_the_next_question_wait_longer(place: Path) -> None:
    """A machine whose processors are busy is no fleet that is away."""
    async with slow(place) as (servicer, fleet):
        assert await peers(fleet) == []
        assert fleet._patience.seconds < PATIENCE
        servicer.idle.set()
        await eventually_async(lambda: asyncio.sleep(0, fleet._patience.seconds > PATIENCE))
        await eventually_async(lambda: asyncio.sleep(0, not fleet._asking))


async def test_a_claim_whose_answer_is_lost_does_not_stay() -> None:
    """The node does not know that it has it, so it would claim the blob for as long as the node lives."""
    etcd = LossyEtcd()
    async with member(etcd, "a") as node:
        async with node.fetching("default", BLOB, 100) as fetch:
            etcd.losing = True
            assert await fetch.claim() == NOBODY
            etcd.losing = False
            assert await fetch.claim() == Claim("a", True, "a:1")
            etcd.losing = True
            async with node.fetching("default", OTHER, 100) as unknown:
                assert await unknown.claim() == NOBODY
            etcd.losing = False
            await has_keys(etcd, "fetching/", lambda found: found == [str(BLOB)])
        await has_keys(etcd, "fetching/", lambda found: not found)


async def test_a_claim_that_was_taken_over_is_not_ended_by_who_had_it() -> None:
    """Nor by the end of the lease of that one, which writes all its keys anew then."""
    etcd = MemoryEtcd()
    async with member(etcd, "a") as a, member(etcd, "b") as b, b.fetching("default", BLOB, 100) as other:
        async with a.fetching("default", BLOB, 100) as one, a.fetching("default", OTHER, 100) as kept:
            assert (await one.claim()).ours and (await kept.claim()).ours
            assert await other.claim(["a"]) == Claim("b", True, "b:1")
            etcd.revoke(a._lease)
            await eventually_async(lambda: asyncio.sleep(0, bool(a.trouble)))
            await eventually_async(lambda: asyncio.sleep(0, not a.trouble))
            assert await a.fetcher(BLOB) == "b"
            await has_keys(etcd, "fetching/", lambda found: len(found) == 2)
            assert await a.fetcher(OTHER) == "a"
        await has_keys(etcd, "fetching/", lambda found: found == [str(BLOB)])
        assert await a.fetcher(BLOB) == "b"


async def test_a_node_that_serves_nothing_claims_nothing() -> None:
    """The others would wait for it in vain. It is told who fetches the blob all the same."""
    etcd = MemoryEtcd()
    async with member(etcd, "a") as a, member(etcd, "b") as b:
        a.serve("")
        async with a.fetching("default", BLOB, 100) as one, b.fetching("default", BLOB, 100) as other:
            assert await one.claim() == NOBODY
            assert await other.claim() == Claim("b", True, "b:1")
            assert await one.claim() == Claim("b", False, "b:1")
            assert await one.claim(["b"]) == NOBODY


async def test_a_claim_that_is_made_again_while_it_is_ended_ends_too() -> None:
    """Its end is written, whenever the answer to the end of the one before comes."""
    etcd = LossyEtcd()
    async with member(etcd, "a") as node:
        async with node.fetching("default", BLOB, 100) as fetch:
            assert await fetch.claim() == Claim("a", True, "a:1")
            etcd.holding = asyncio.Event()
        await has_keys(etcd, "fetching/", lambda found: not found)
        async with node.fetching("default", BLOB, 100) as fetch:
            assert await fetch.claim() == Claim("a", True, "a:1")
            etcd.holding.set()
        await has_keys(etcd, "fetching/", lambda found: not found)


async def test_a_claim_that_is_released_while_the_node_comes_back_ends_too() -> None:
    """With its new lease a node writes its claims anew; the fetch of one is over before etcd has answered."""
    etcd = LossyEtcd()
    async with member(etcd, "a") as node:
        async with node.fetching("default", BLOB, 100) as fetch:
            assert await fetch.claim() == Claim("a", True, "a:1")
            etcd.claiming = asyncio.Event()
            etcd.revoke(node._lease)
            await eventually_async(lambda: asyncio.sleep(0, etcd.claims))
        etcd.claiming.set()
        await eventually_async(lambda: asyncio.sleep(0, not node.trouble))
        await has_keys(etcd, "fetching/", lambda found: not found)
        assert not node._claims


async def test_a_claim_of_an_earlier_release_does_not_say_where_the_blob_arrives() -> None:
    """Its node says that a moment later. If it never does, its claim is taken over."""
    etcd = MemoryEtcd()
    async with member(etcd, "a") as node, node.fetching("default", BLOB, 100) as fetch:
        old = b'{"v":1,"node":"old"}'
        await etcd.commit([Put(f"{PREFIX}/fetching/{BLOB}".encode(), old)])
        before, asking = etcd.calls, loops.task("the claim", fetch.claim())
        await eventually_async(lambda: asyncio.sleep(0, etcd.calls > before + 2))
        has = b'{"v":1,"size":100,"have":1,"address":"old:1"}'
        await etcd.commit([Put(f"{PREFIX}/has/{BLOB}/old".encode(), has)])
        assert await asking == Claim("old", False, "old:1")
        await etcd.commit([Delete(f"{PREFIX}/has/{BLOB}/old".encode())])
        assert await fetch.claim() == Claim("old", False)
        assert await fetch.claim(["old"]) == Claim("a", True, "a:1")
