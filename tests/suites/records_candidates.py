"""Records of objects in the backends of candidates: services that an operator tries in the place of the node's own."""

from __future__ import annotations

import pytest

from api.containerd.events import content_pb2 as content_events
from api.containerd.services.containers.v1 import containers_pb2, containers_stubs
from api.containerd.services.content.v1 import content_pb2
from api.splitd.records.v1 import records_pb2 as pb
from services.kit import errors
from tests.suites.records import Life, World, digest
from tests.support import eventually_async

CONTENT, OVERLAYFS = "content@mine", "snapshots.overlayfs@mine"


async def world(life: Life) -> World:
    """One whose gateway leads to two candidates."""
    made = World(life)
    await made.begin()
    await connect(made, CONTENT, OVERLAYFS)
    return made


async def connect(world: World, *candidates: str) -> None:
    await world.records.Connect(
        pb.ConnectRequest(
            incarnation=world.incarnation,
            content="content",
            snapshotters=["overlayfs", "native"],
            candidates=candidates,
        )
    )


async def opened(world: World, ref: str, backend: str, expected: str = "") -> pb.Ingest:
    return await world.records.OpenIngest(
        pb.OpenIngestRequest(incarnation=world.incarnation, ref=ref, backend=backend, expected=expected),
        headers=world.headers,
    )


async def begun(world: World, key: str, backend: str, parent: str = "", snapshotter: str = "overlayfs") -> pb.Intent:
    return await world.records.BeginSnapshot(
        pb.BeginSnapshotRequest(
            incarnation=world.incarnation, snapshotter=snapshotter, key=key, parent=parent, backend=backend
        ),
        headers=world.headers,
    )


async def blob_in(world: World, name: str, backend: str) -> None:
    await opened(world, f"ref-{name}", backend)
    intent = await world.begin_commit(f"ref-{name}", name, 3)
    assert intent.backend == backend
    await world.finish(intent, name, 3)


async def backend_of(world: World, key: str) -> str:
    request = pb.ResolveSnapshotRequest(snapshotter="overlayfs", key=key)
    return str((await world.records.ResolveSnapshot(request, headers=world.headers)).backend)


async def objects(world: World, backend: str, limit: int = 100) -> pb.Objects:
    found: pb.Objects = await world.records.ListObjects(pb.ListObjectsRequest(backend=backend, limit=limit))
    return found


class CandidatesSuite:
    """Needs the fixture ``life``."""

    async def test_content_stays_with_the_backend_that_its_ingest_began_in(self, life: Life) -> None:
        w = await world(life)
        name = digest(1)
        assert (await opened(w, "r", CONTENT)).backend == CONTENT
        for again in ("", "content", CONTENT):
            assert (await opened(w, "r", again)).backend == CONTENT
        intent = await w.begin_commit("r", name, 3)
        assert intent.backend == CONTENT
        await w.finish(intent, name, 3)
        request = pb.ResolveBlobRequest(digest=name)
        assert (await w.records.ResolveBlob(request, headers=w.headers)).backend == CONTENT
        assert (await opened(w, "home", "")).backend == "content"

    async def test_a_shared_blob_stays_where_it_is(self, life: Life) -> None:
        w = await world(life)
        name = digest(2)
        await blob_in(w, name, CONTENT)
        other = await w.beside(f"{w.namespace}-other")
        ingest = await opened(other, "r", "content", expected=name)
        assert (ingest.shared, ingest.backend) == (True, CONTENT)
        await other.begin_commit("r", name)
        request = pb.ResolveBlobRequest(digest=name)
        assert (await other.records.ResolveBlob(request, headers=other.headers)).backend == CONTENT

    async def test_a_child_lives_where_its_parent_lives(self, life: Life) -> None:
        w = await world(life)
        await w.finish(await begun(w, "key", OVERLAYFS))
        await w.finish(await w.begin_commit_snapshot("base", "key"))
        child = await begun(w, "child", "snapshots.overlayfs", parent="base")
        assert child.backend == OVERLAYFS
        await w.finish(child)
        assert [await backend_of(w, key) for key in ("base", "child")] == [OVERLAYFS, OVERLAYFS]
        await w.committed("at home")
        assert (await begun(w, "below", OVERLAYFS, parent="at home")).backend == "snapshots.overlayfs"

    async def test_a_parent_in_another_backend_is_refused_at_commit(self, life: Life) -> None:
        w = await world(life)
        await w.committed("base")
        await w.finish(await begun(w, "key", OVERLAYFS))
        with pytest.raises(errors.FailedPrecondition, match=f"base is in snapshots.overlayfs, .* in {OVERLAYFS}"):
            await w.begin_commit_snapshot("name", "key", "base")
        await w.finish(await w.begin_commit_snapshot("name", "key"))

    @pytest.mark.parametrize("backend", ["snapshots.overlayfs@other", "content@mine", "snapshots.native@mine", "x"])
    async def test_a_backend_that_the_gateway_did_not_name_is_refused(self, life: Life, backend: str) -> None:
        w = await world(life)
        with pytest.raises(errors.FailedPrecondition, match=f"{backend} is no backend of snapshots.overlayfs"):
            await begun(w, "key", backend)
        if backend != CONTENT:
            with pytest.raises(errors.FailedPrecondition, match=f"{backend} is no backend of content"):
                await opened(w, "ref", backend)

    async def test_objects_are_counted_and_named(self, life: Life) -> None:
        w = await world(life)
        name = digest(3)
        before = await objects(w, CONTENT)
        await blob_in(w, name, CONTENT)
        await opened(w, "open", CONTENT)
        found = await objects(w, CONTENT, 10_000)
        assert (found.blobs - before.blobs, found.ingests - before.ingests, found.snapshots) == (1, 1, 0)
        ours = [(each.kind, each.name) for each in found.some if each.namespace == w.namespace]
        assert ours == [("blob", name), ("ingest", "open")]
        assert len((await objects(w, CONTENT, 1)).some) == 1
        await w.finish(await begun(w, "rootfs", OVERLAYFS))
        await w.life.client(containers_stubs.CONTAINERS).Create(
            containers_pb2.CreateContainerRequest(
                container=containers_pb2.Container(
                    id="box",
                    snapshotter="overlayfs",
                    snapshot_key="rootfs",
                    runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2"),
                    spec={"type_url": "spec", "value": b"{}"},
                )
            ),
            headers=w.headers,
        )
        snapshots = [each for each in (await objects(w, OVERLAYFS, 10_000)).some if each.namespace == w.namespace]
        assert [(each.kind, each.name, each.snapshotter, list(each.containers)) for each in snapshots] == [
            ("snapshot", "rootfs", "overlayfs", ["box"])
        ]

    async def test_an_answer_is_not_larger_than_a_message_may_be(self, life: Life) -> None:
        w = await world(life)
        before = await objects(w, CONTENT)
        for number in range(10):
            await opened(w, f"{number}{'x' * (1 << 20)}", CONTENT)
        found = await objects(w, CONTENT, 10_000)
        assert found.ingests - before.ingests == 10
        assert 0 < found.ByteSize() < 5 << 20

    async def test_an_open_operation_is_counted_until_it_ends(self, life: Life) -> None:
        w = await world(life)
        await objects(w, OVERLAYFS)
        intent = await begun(w, "key", OVERLAYFS)
        before = await objects(w, OVERLAYFS)
        await w.cancel(intent)
        after = await objects(w, OVERLAYFS)
        assert (before.intents - after.intents, after.uncollected - before.uncollected) == (1, 1)

    async def test_a_candidate_that_is_gone_is_forgotten(self, life: Life) -> None:
        w = await world(life)
        name, kept = digest(4), digest(5)
        await blob_in(w, name, CONTENT)
        await w.blob(kept)
        await opened(w, "open", CONTENT)
        with pytest.raises(errors.FailedPrecondition, match="the gateway still uses content@mine"):
            await w.records.ForgetObjects(pb.ForgetObjectsRequest(backend=CONTENT))
        await connect(w, OVERLAYFS)
        dropped = await w.records.ForgetObjects(pb.ForgetObjectsRequest(backend=CONTENT))
        assert {("blob", name), ("ingest", "open")} <= {(each.kind, each.name) for each in dropped.some}
        assert await objects(w, CONTENT) == pb.Objects()
        with pytest.raises(errors.NotFound):
            await w.info(name)
        assert await w.ingests() == []
        assert (await w.info(kept)).digest == kept

        async def published() -> bool:
            found = [event for topic, event in w.life.published(w.namespace) if topic == "/content/delete"]
            return found == [content_events.ContentDelete(digest=name)]

        await eventually_async(published)

    async def test_snapshots_of_a_candidate_are_forgotten_with_what_was_begun_on_them(self, life: Life) -> None:
        w = await world(life)
        await w.finish(await begun(w, "key", OVERLAYFS))
        await w.finish(await w.begin_commit_snapshot("base", "key"))
        await w.finish(await begun(w, "child", "", parent="base"))
        left = await begun(w, "grandchild", "", parent="base")
        await connect(w, CONTENT)
        with pytest.raises(errors.FailedPrecondition, match=f"{OVERLAYFS} is no backend"):
            await begun(w, "late", "", parent="base")
        await w.records.ForgetObjects(pb.ForgetObjectsRequest(backend=OVERLAYFS))
        assert await objects(w, OVERLAYFS) == pb.Objects()
        for key in ("base", "child"):
            with pytest.raises(errors.NotFound):
                await w.stat(key)
        with pytest.raises(errors.NotFound, match="open intent"):
            await w.finish(left)
        await w.committed("base")
        assert await backend_of(w, "base") == "snapshots.overlayfs"

    @pytest.mark.parametrize("backend", ["content", "snapshots.overlayfs", ""])
    async def test_the_nodes_own_objects_are_never_forgotten(self, life: Life, backend: str) -> None:
        w = await world(life)
        with pytest.raises(errors.FailedPrecondition, match="is no candidate's backend"):
            await w.records.ForgetObjects(pb.ForgetObjectsRequest(backend=backend))

    async def test_info_and_list_show_content_of_all_backends(self, life: Life) -> None:
        w = await world(life)
        here, there = digest(6), digest(7)
        await w.blob(here)
        await blob_in(w, there, CONTENT)
        found = {
            info.digest
            async for answer in w.content.List(content_pb2.ListContentRequest(), headers=w.headers)
            for info in answer.info
        }
        assert found == {here, there}
