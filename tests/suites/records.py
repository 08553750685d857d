"""The suite of splitd.records.v1.Records, and of the methods of Content and Snapshots that metadata answers. It runs on
metadata's stores and on its process.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import uuid
from typing import Any, Protocol

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from api.containerd.events import content_pb2 as content_events
from api.containerd.events import snapshot_pb2 as snapshot_events
from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from api.splitd.records.v1 import records_pb2 as pb
from api.splitd.records.v1 import records_stubs
from services.kit import errors
from services.kit.any import unpack
from tests.suites.records_lives import RawStandIn, headers, names, new_namespace
from tests.support import eventually_async

RECORDS = records_stubs.RECORDS
CONTENT = content_stubs.CONTENT
SNAPSHOTS = snapshots_stubs.SNAPSHOTS
LEASES = leases_stubs.LEASES
NAMESPACES = namespaces_stubs.NAMESPACES

REF = "containerd.io/snapshot.ref"


_salts = itertools.count(1)
_salt = 0


def digest(number: int) -> str:
    """A digest that no other test uses: namespaces share equal content."""
    return f"sha256:{_salt:032x}{number:032x}"


class Life(Protocol):
    """A metadata service, and a stand-in for the raw services that its intents ask."""

    raw: RawStandIn

    def client(self, service: ServiceDescriptor) -> Any: ...

    def published(self, namespace: str) -> list[tuple[str, Message]]:
        """Topics and messages that it has published by itself."""
        ...


class World:
    """One gateway, one namespace and one lease: enough for most tests."""

    def __init__(self, life: Life, *, lease: str = "l") -> None:
        self.life = life
        self.raw = life.raw
        self.namespace = new_namespace()
        self.lease = lease
        self.incarnation = str(uuid.uuid4())
        self.records = life.client(RECORDS)
        self.content = life.client(CONTENT)
        self.snapshots = life.client(SNAPSHOTS)
        self.leases = life.client(LEASES)
        self.namespaces = life.client(NAMESPACES)

    @property
    def headers(self) -> dict[str, str]:
        return headers(self.namespace, self.lease)

    async def begin(self) -> World:
        global _salt
        _salt = next(_salts)
        await self.connect()
        await self.leases.Create(leases_pb2.CreateRequest(id=self.lease), headers=headers(self.namespace))
        return self

    async def connect(self) -> str:
        answer = await self.records.Connect(
            pb.ConnectRequest(incarnation=self.incarnation, content="content", snapshotters=["overlayfs", "native"])
        )
        return str(answer.store_id)

    async def beside(self, namespace: str = "") -> World:
        """The same gateway's client in another namespace."""
        other = World(self.life)
        other.namespace = namespace or other.namespace
        other.incarnation = self.incarnation
        await other.leases.Create(leases_pb2.CreateRequest(id=other.lease), headers=headers(other.namespace))
        return other

    async def held(self) -> set[tuple[str, str]]:
        found = await self.leases.ListResources(
            leases_pb2.ListResourcesRequest(id=self.lease), headers=headers(self.namespace)
        )
        return {(r.type, r.id) for r in found.resources}

    # -- content

    async def open(self, ref: str, total: int = 0, expected: str = "") -> pb.Ingest:
        return await self.records.OpenIngest(
            pb.OpenIngestRequest(incarnation=self.incarnation, ref=ref, total=total, expected=expected),
            headers=self.headers,
        )

    async def begin_commit(self, ref: str, expected: str = "", size: int = 0, **labels: str) -> pb.Intent:
        return await self.records.BeginCommitIngest(
            pb.BeginCommitIngestRequest(
                incarnation=self.incarnation, ref=ref, expected=expected, size=size, labels=labels
            ),
            headers=self.headers,
        )

    async def finish(
        self, intent: pb.Intent, name: str = "", size: int = 0, adopted: list[snapshots_pb2.Info] | None = None
    ) -> pb.Finished:
        return await self.records.Finish(
            pb.FinishRequest(intent=intent.id, digest=name, size=size, adopted=adopted or []), headers=self.headers
        )

    async def cancel(self, intent: pb.Intent) -> None:
        await self.records.Cancel(pb.CancelRequest(intent=intent.id), headers=self.headers)

    async def blob(self, name: str, size: int = 3, ref: str = "", **labels: str) -> pb.Finished:
        """A committed blob."""
        ref = ref or f"ref-{name}"
        await self.open(ref, expected=name)
        return await self.finish(await self.begin_commit(ref, name, size, **labels), name, size)

    async def info(self, name: str) -> content_pb2.Info:
        return (await self.content.Info(content_pb2.InfoRequest(digest=name), headers=self.headers)).info

    async def ingests(self) -> list[str]:
        return names((await self.records.ListIngests(Empty(), headers=self.headers)).ingests, "ref")

    # -- snapshots

    async def begin_snapshot(
        self,
        key: str,
        parent: str = "",
        *,
        view: bool = False,
        labels: dict[str, str] | None = None,
        snapshotter: str = "overlayfs",
    ) -> pb.Intent:
        return await self.records.BeginSnapshot(
            pb.BeginSnapshotRequest(
                incarnation=self.incarnation,
                snapshotter=snapshotter,
                key=key,
                parent=parent,
                view=view,
                labels=labels or {},
            ),
            headers=self.headers,
        )

    async def snapshot(
        self, key: str, parent: str = "", *, view: bool = False, labels: dict[str, str] | None = None
    ) -> pb.Intent:
        """A prepared or viewed snapshot."""
        intent = await self.begin_snapshot(key, parent, view=view, labels=labels)
        await self.finish(intent)
        return intent

    async def begin_commit_snapshot(
        self, name: str, key: str, parent: str = "", labels: dict[str, str] | None = None
    ) -> pb.Intent:
        return await self.records.BeginCommitSnapshot(
            pb.BeginCommitSnapshotRequest(
                incarnation=self.incarnation,
                snapshotter="overlayfs",
                name=name,
                key=key,
                parent=parent,
                labels=labels or {},
            ),
            headers=self.headers,
        )

    async def committed(self, name: str, parent: str = "", labels: dict[str, str] | None = None) -> pb.Intent:
        """A committed snapshot."""
        await self.snapshot(f"key of {name}", parent)
        intent = await self.begin_commit_snapshot(name, f"key of {name}", labels=labels)
        await self.finish(intent)
        return intent

    async def stat(self, key: str) -> snapshots_pb2.Info:
        return (
            await self.snapshots.Stat(
                snapshots_pb2.StatSnapshotRequest(snapshotter="overlayfs", key=key), headers=self.headers
            )
        ).info

    async def list(self, *filters: str) -> list[snapshots_pb2.Info]:
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs", filters=filters)
        return [info async for message in self.snapshots.List(request, headers=self.headers) for info in message.info]

    async def resolve(self, key: str) -> pb.Snapshot:
        return await self.records.ResolveSnapshot(
            pb.ResolveSnapshotRequest(snapshotter="overlayfs", key=key), headers=self.headers
        )

    async def remove(self, key: str) -> pb.Finished:
        return await self.records.RemoveSnapshot(
            pb.ResolveSnapshotRequest(snapshotter="overlayfs", key=key), headers=self.headers
        )


class Suite:
    """A subclass has a fixture ``life``."""

    @pytest.fixture
    async def world(self, life: Life) -> World:
        return await World(life).begin()


async def refused(call: Any, kind: type[errors.NodeError], message: str) -> None:
    """The call fails with that class and exactly that message."""
    with pytest.raises(kind) as caught:
        await call
    assert (type(caught.value), str(caught.value)) == (kind, message)


class GatewaySuite(Suite):
    """Connect."""

    async def test_the_store_id_stays(self, world: World) -> None:
        """It is the same for every gateway that connects."""
        first = await world.connect()
        assert uuid.UUID(first)
        world.incarnation = "another"
        assert await world.connect() == first

    async def test_a_gateway_that_has_not_connected_cannot_begin_anything(self, world: World) -> None:
        """Calls that name another incarnation are FAILED_PRECONDITION."""
        await world.open("r")
        await world.snapshot("k")
        world.incarnation = "other"
        message = "gateway other has not connected: failed precondition"
        for call in (
            world.open("r"),
            world.begin_commit("r"),
            world.begin_snapshot("k2"),
            world.begin_commit_snapshot("n", "k"),
        ):
            await refused(call, errors.FailedPrecondition, message)

    async def test_a_lease_must_exist(self, world: World) -> None:
        """All calls that would put something under it are NOT_FOUND."""
        await world.open("r")
        await world.snapshot("k")
        world.lease = "nope"
        for call in (
            world.open("x"),
            world.begin_commit("r"),
            world.begin_snapshot("k2"),
            world.begin_commit_snapshot("n", "k"),
        ):
            await refused(call, errors.NotFound, "lease does not exist: not found")
        world.lease = "l"
        assert await world.ingests() == ["r"]

    async def test_a_namespace_is_required(self, world: World) -> None:
        """It must be an identifier."""
        await refused(
            world.records.ListIngests(Empty()), errors.FailedPrecondition, "namespace is required: failed precondition"
        )
        with pytest.raises(errors.InvalidArgument):
            await world.records.ListIngests(Empty(), headers=headers("a/b"))


class ContentRecordsSuite(Suite):
    """Ingests and blobs."""

    async def test_an_ingest_has_a_raw_ref_of_its_own(self, world: World) -> None:
        """It is NAMESPACE/NUMBER/REF: the same when the ingest is opened again, with another number for another
        ingest.
        """
        first, second, again = await world.open("a/b", total=5), await world.open("c"), await world.open("a/b")
        assert re.fullmatch(rf"{world.namespace}/\d+/a/b", first.raw_ref)
        assert (first.backend, first.shared, first.ref) == ("content", False, "a/b")
        assert first.started_at.seconds > 1_600_000_000
        assert again.raw_ref == first.raw_ref
        assert second.raw_ref.split("/")[1] != first.raw_ref.split("/")[1]
        assert await world.ingests() == ["a/b", "c"]
        assert await world.held() == {("ingests", "a/b"), ("ingests", "c")}
        assert (
            await world.records.GetIngest(pb.GetIngestRequest(ref="c"), headers=world.headers)
        ).raw_ref == second.raw_ref

    async def test_a_number_is_never_used_again(self, world: World) -> None:
        """It is not used again after an abort either."""
        first = await world.open("r")
        await world.records.ForgetIngest(pb.GetIngestRequest(ref="r"), headers=world.headers)
        assert (await world.open("r")).raw_ref != first.raw_ref

    async def test_a_ref_is_required(self, world: World) -> None:
        """A call without one is INVALID_ARGUMENT."""
        await refused(world.open(""), errors.InvalidArgument, "ref must not be empty: invalid argument")

    async def test_abort_forgets_the_ingest(self, world: World) -> None:
        """It answers the ingest once, then NOT_FOUND."""
        ingest = await world.open("r")
        forgotten = await world.records.ForgetIngest(pb.GetIngestRequest(ref="r"), headers=world.headers)
        assert forgotten.raw_ref == ingest.raw_ref
        assert await world.held() == set()
        for method in (world.records.ForgetIngest, world.records.GetIngest):
            await refused(
                method(pb.GetIngestRequest(ref="r"), headers=world.headers), errors.NotFound, "reference r: not found"
            )

    async def test_a_commit_makes_a_blob(self, world: World) -> None:
        """The blob has the labels except empty ones; the lease holds it instead of the ingest; the event is part of the
        answer.
        """
        await world.open("r", expected=digest(1))
        intent = await world.begin_commit("r", digest(1), 7, a="1", b="")
        assert intent.raw_ref.endswith("/r")
        assert (intent.backend, intent.HasField("finished")) == ("content", False)
        await refused(world.info(digest(1)), errors.NotFound, f"content digest {digest(1)}: not found")
        finished = await world.finish(intent, digest(1), 7)
        assert (finished.digest, finished.size) == (digest(1), 7)
        [event] = finished.events
        assert (event.namespace, event.topic) == (world.namespace, "/content/create")
        assert unpack(event.event, content_events.ContentCreate) == content_events.ContentCreate(
            digest=digest(1), size=7
        )
        info = await world.info(digest(1))
        assert (info.size, dict(info.labels), info.created_at) == (7, {"a": "1"}, info.updated_at)
        assert await world.ingests() == []
        assert await world.held() == {("content", digest(1))}
        blob = await world.records.ResolveBlob(pb.ResolveBlobRequest(digest=digest(1)), headers=world.headers)
        assert blob == pb.Blob(digest=digest(1), size=7, backend="content")

    async def test_a_blob_may_be_empty(self, world: World) -> None:
        """Its record is like any other."""
        await world.blob(digest(1), 0)
        assert (await world.info(digest(1))).size == 0
        other = await world.beside()
        assert (await other.open("r", expected=digest(1))).shared
        assert (await other.begin_commit("r", digest(1))).finished.size == 0

    async def test_a_write_makes_its_namespace(self, world: World, life: Life) -> None:
        """The namespace is listed from the first ingest on."""
        other = World(life, lease="")
        other.incarnation = world.incarnation
        await other.open("r")
        found = (await world.namespaces.List(namespaces_pb2.ListNamespacesRequest(), headers=world.headers)).namespaces
        assert other.namespace in names(found, "name")

    async def test_thousands_of_labels_are_set_like_one(self, world: World) -> None:
        """Only the labels in the mask are set. Labels that another call sets at the same time are kept, and errors are
        reported.
        """
        await world.blob(digest(1), keep="k", gone="g")
        labels = {f"l{n}": str(n) for n in range(3000)} | {"gone": ""}

        async def update(values: dict[str, str], paths: list[str]) -> content_pb2.Info:
            request = content_pb2.UpdateRequest(
                info=content_pb2.Info(digest=digest(1), labels=values), update_mask={"paths": paths}
            )
            return (await world.content.Update(request, headers=world.headers)).info

        others = [update({f"x{n}": "y"}, [f"labels.x{n}"]) for n in range(5)]
        first, *_ = await asyncio.gather(update(labels, [f"labels.{key}" for key in labels]), *others)
        wanted = {"keep": "k"} | {f"l{n}": str(n) for n in range(3000)}
        assert dict(first.labels).items() >= wanted.items()
        assert dict((await world.info(digest(1))).labels) == wanted | {f"x{n}": "y" for n in range(5)}
        await refused(
            update(labels, [*(f"labels.{key}" for key in labels), "size"]),
            errors.InvalidArgument,
            f'cannot update "size" field on content info "{digest(1)}": invalid argument',
        )
        assert dict((await update(labels, [])).labels) == {f"l{n}": str(n) for n in range(3000)}

    async def test_finish_answers_the_same_again(self, world: World) -> None:
        """The answer has the same events; cancelling a finished intent changes nothing."""
        await world.open("r")
        intent = await world.begin_commit("r", digest(1))
        first = await world.finish(intent, digest(1), 7)
        assert await world.finish(intent, digest(1), 7) == first
        await world.cancel(intent)
        assert (await world.info(digest(1))).size == 7
        assert await world.finish(intent, digest(1), 7) == first

    async def test_cancel_leaves_the_ingest(self, world: World) -> None:
        """Cancel can be repeated. The ingest can be committed again, and a cancelled intent cannot be finished."""
        await world.open("r")
        intent = await world.begin_commit("r", digest(1))
        await world.cancel(intent)
        await world.cancel(intent)
        assert await world.ingests() == ["r"]
        await refused(world.finish(intent, digest(1), 7), errors.NotFound, f"open intent {intent.id}: not found")
        await world.finish(await world.begin_commit("r", digest(1)), digest(1), 7)
        assert (await world.info(digest(1))).size == 7

    async def test_a_commit_needs_its_ingest(self, world: World) -> None:
        """Without it, the commit is NOT_FOUND."""
        await refused(world.begin_commit("r", digest(1)), errors.NotFound, "reference r: not found")

    async def test_labels_of_a_commit_are_checked(self, world: World) -> None:
        """They are checked before anything happens."""
        await world.open("r")
        await refused(
            world.begin_commit("r", digest(1), k="v" * 4096),
            errors.InvalidArgument,
            (
                "info.Labels: label key and value length (4097 bytes) greater than maximum size (4096 bytes), key: k: "
                "invalid argument"
            ),
        )

    async def test_a_blob_of_the_namespace_needs_no_writer(self, world: World) -> None:
        """The call is ALREADY_EXISTS, and the lease holds the blob."""
        await world.blob(digest(1))
        world.lease = "m"
        await world.leases.Create(leases_pb2.CreateRequest(id="m"), headers=headers(world.namespace))
        await refused(world.open("r", expected=digest(1)), errors.AlreadyExists, f"content {digest(1)}: already exists")
        assert await world.held() == {("content", digest(1))}
        assert await world.ingests() == []

    async def test_a_blob_that_came_meanwhile_ends_the_commit(self, world: World) -> None:
        """If the namespace gets the blob meanwhile, the commit is ALREADY_EXISTS and forgets the ingest."""
        await world.open("slow")
        await world.blob(digest(1))
        await refused(
            world.begin_commit("slow", digest(1)), errors.AlreadyExists, f"content {digest(1)}: already exists"
        )
        assert await world.ingests() == []
        assert await world.held() == {("content", digest(1))}

    async def test_a_second_commit_of_the_same_waits_for_the_first(self, world: World) -> None:
        """It is then ALREADY_EXISTS."""
        await world.open("a")
        await world.open("b")
        first = await world.begin_commit("a", digest(1))
        second = asyncio.ensure_future(world.begin_commit("b", digest(1)))
        await world.ingests()
        assert not second.done()
        await world.finish(first, digest(1), 7)
        await refused(second, errors.AlreadyExists, f"content {digest(1)}: already exists")

    async def test_a_second_commit_goes_on_where_the_first_failed(self, world: World) -> None:
        """It continues when the first one's intent is cancelled."""
        await world.open("a")
        await world.open("b")
        first = await world.begin_commit("a", digest(1))
        second = asyncio.ensure_future(world.begin_commit("b", digest(1)))
        await world.cancel(first)
        await world.finish(await second, digest(1), 7)
        assert await world.ingests() == ["a"]

    async def test_a_commit_that_turns_out_to_be_known_is_refused(self, world: World) -> None:
        """Without an expected digest only the raw store knows the digest: Finish is then ALREADY_EXISTS, each time, and
        the ingest is over.
        """
        await world.blob(digest(1))
        await world.open("r")
        intent = await world.begin_commit("r")
        for _ in range(2):
            await refused(
                world.finish(intent, digest(1), 3), errors.AlreadyExists, f"content {digest(1)}: already exists"
            )
        assert await world.ingests() == []

    async def test_a_finish_without_a_digest_asks_the_raw_store(self, world: World) -> None:
        """It asks for the size of the expected blob."""
        world.raw.blobs[digest(1)] = 11
        await world.open("r")
        finished = await world.finish(await world.begin_commit("r", digest(1)))
        assert (finished.digest, finished.size) == (digest(1), 11)

    async def test_a_blob_of_another_namespace_is_shared(self, world: World) -> None:
        """No bytes are needed: the commit is finished at once, with its event."""
        await world.blob(digest(1), 7)
        other = await world.beside()
        ingest = await other.open("r", total=7, expected=digest(1))
        assert (ingest.shared, ingest.size, ingest.expected) == (True, 7, digest(1))
        intent = await other.begin_commit("r", digest(1), 7, a="1")
        assert (intent.finished.digest, intent.finished.size) == (digest(1), 7)
        assert [e.topic for e in intent.finished.events] == ["/content/create"]
        assert dict((await other.info(digest(1))).labels) == {"a": "1"}
        assert dict((await world.info(digest(1))).labels) == {}
        assert await other.ingests() == []

    async def test_a_shared_commit_is_checked(self, world: World) -> None:
        """It is checked as the raw commit would be. A blob for which the caller expects another size is not shared."""
        await world.blob(digest(1), 7)
        other = await world.beside()
        assert not (await other.open("odd", total=8, expected=digest(1))).shared
        await other.open("r", expected=digest(1))
        await refused(
            other.begin_commit("r", digest(1), 8),
            errors.FailedPrecondition,
            '"r" failed size validation: 7 != 8: failed precondition',
        )
        await refused(
            other.begin_commit("r", digest(2), 7),
            errors.FailedPrecondition,
            '"r" unexpected digest: failed precondition',
        )

    async def test_delete_takes_the_record(self, world: World) -> None:
        """Only this namespace's record is removed; the event is part of the answer."""
        await world.blob(digest(1))
        other = await world.beside()
        await other.open("r", expected=digest(1))
        await other.begin_commit("r", digest(1))
        finished = await world.records.DeleteBlob(pb.ResolveBlobRequest(digest=digest(1)), headers=world.headers)
        [event] = finished.events
        assert event.topic == "/content/delete"
        assert unpack(event.event, content_events.ContentDelete) == content_events.ContentDelete(digest=digest(1))
        assert await world.held() == set()
        for method in (world.records.DeleteBlob, world.records.ResolveBlob):
            await refused(
                method(pb.ResolveBlobRequest(digest=digest(1)), headers=world.headers),
                errors.NotFound,
                f"content digest {digest(1)}: not found",
            )
        assert (await other.info(digest(1))).size == 3

    async def test_digests_are_checked(self, world: World) -> None:
        """The words are those that containerd uses for each call."""
        await refused(world.info("x"), errors.InvalidArgument, '"x" failed validation')
        await refused(
            world.records.ResolveBlob(pb.ResolveBlobRequest(digest="x"), headers=world.headers),
            errors.InvalidArgument,
            "x: invalid checksum digest format",
        )
        await refused(
            world.records.DeleteBlob(pb.ResolveBlobRequest(digest="sha256:1"), headers=world.headers),
            errors.InvalidArgument,
            "invalid checksum digest length",
        )

    async def test_labels_are_updated(self, world: World) -> None:
        """All labels change, or those that the mask names; nothing else can be updated."""
        await world.blob(digest(1), a="1", b="2")

        async def update(labels: dict[str, str], *paths: str) -> dict[str, str]:
            request = content_pb2.UpdateRequest(
                info=content_pb2.Info(digest=digest(1), labels=labels), update_mask=FieldMask(paths=paths)
            )
            answer = (await world.content.Update(request, headers=world.headers)).info
            assert answer == await world.info(digest(1))
            return dict(answer.labels)

        before = await world.info(digest(1))
        assert await update({"a": "9", "c": "3"}, "labels.a", "labels.b") == {"a": "9"}
        assert await update({"c": "3"}, "labels.c") == {"a": "9", "c": "3"}
        assert await update({"d": "4"}) == {"d": "4"}
        assert await update({"e": "5"}, "labels") == {"e": "5"}
        after = await world.info(digest(1))
        assert after.created_at == before.created_at
        assert after.updated_at.ToNanoseconds() > before.updated_at.ToNanoseconds()
        await refused(
            update({}, "size"),
            errors.InvalidArgument,
            f'cannot update "size" field on content info "{digest(1)}": invalid argument',
        )
        with pytest.raises(errors.InvalidArgument):
            await update({"k": "v" * 4096})

    async def test_blobs_are_listed(self, world: World) -> None:
        """They come in hundreds, in order, filtered by digest and labels."""
        for number in range(101):
            await world.blob(digest(number), kind="even" if number % 2 == 0 else "odd")

        async def select(*filters: str) -> list[list[str]]:
            return [
                names(m.info, "digest")
                async for m in world.content.List(
                    content_pb2.ListContentRequest(filters=filters), headers=world.headers
                )
            ]

        first, second = await select()
        assert first + second == [digest(n) for n in range(101)]
        assert len(first) == 100
        assert await select("labels.kind==odd") == [[digest(n) for n in range(1, 101, 2)]]
        assert await select(f"digest=={digest(7)}", f"digest=={digest(5)}") == [[digest(5), digest(7)]]
        assert await select("labels.none") == []


class SnapshotRecordsSuite(Suite):
    """Prepare, View, Commit, Remove, Update, Stat, List."""

    async def test_prepare_makes_an_active_snapshot(self, world: World) -> None:
        """It has a raw key of its own; only inherited labels are passed to the backend; the event is part of the
        answer.
        """
        labels = {"a": "1", "containerd.io/snapshot/x": "2", "containerd.io/snapshot.y": "3", "empty": ""}
        intent = await world.begin_snapshot("k/1", labels=labels)
        assert re.fullmatch(rf"{world.namespace}/\d+/k/1", intent.raw_key)
        assert (intent.backend, intent.raw_parent, intent.target, dict(intent.raw_labels)) == (
            "snapshots.overlayfs",
            "",
            "",
            {"containerd.io/snapshot/x": "2"},
        )
        await refused(world.stat("k/1"), errors.NotFound, "snapshot k/1 does not exist: not found")
        finished = await world.finish(intent)
        [event] = finished.events
        assert (event.namespace, event.topic) == (world.namespace, "/snapshot/prepare")
        assert unpack(event.event, snapshot_events.SnapshotPrepare) == snapshot_events.SnapshotPrepare(
            key="k/1", snapshotter="overlayfs"
        )
        info = await world.stat("k/1")
        del labels["empty"]
        assert (info.name, info.kind, info.parent, dict(info.labels)) == ("k/1", snapshots_pb2.ACTIVE, "", labels)
        assert info.created_at.seconds > 1_600_000_000
        assert await world.held() == {("snapshots/overlayfs", "k/1")}
        assert await world.resolve("k/1") == pb.Snapshot(raw_key=intent.raw_key, backend="snapshots.overlayfs")

    async def test_a_view_has_no_event(self, world: World) -> None:
        """Its kind is view."""
        intent = await world.begin_snapshot("v", view=True)
        assert not (await world.finish(intent)).events
        assert (await world.stat("v")).kind == snapshots_pb2.VIEW

    async def test_commit_turns_the_key_into_a_name(self, world: World) -> None:
        """The committed snapshot has labels of its own; the lease holds the name instead of the key."""
        active = await world.snapshot("k", labels={"old": "1"})
        intent = await world.begin_commit_snapshot("n", "k", labels={"containerd.io/snapshot/x": "2", "new": "3"})
        assert (intent.raw_key, intent.raw_parent, dict(intent.raw_labels)) == (
            active.raw_key,
            "",
            {"containerd.io/snapshot/x": "2"},
        )
        assert re.fullmatch(rf"{world.namespace}/\d+/n", intent.raw_name)
        [event] = (await world.finish(intent)).events
        assert event.topic == "/snapshot/commit"
        assert unpack(event.event, snapshot_events.SnapshotCommit) == snapshot_events.SnapshotCommit(
            key="k", name="n", snapshotter="overlayfs"
        )
        info = await world.stat("n")
        assert (info.kind, info.parent, dict(info.labels)) == (
            snapshots_pb2.COMMITTED,
            "",
            {"containerd.io/snapshot/x": "2", "new": "3"},
        )
        await refused(world.stat("k"), errors.NotFound, "snapshot k does not exist: not found")
        assert await world.held() == {("snapshots/overlayfs", "n")}
        assert (await world.resolve("n")).raw_key == intent.raw_name

    async def test_children_name_their_parent(self, world: World) -> None:
        """The namespace sees the parent's name, the backend its raw name; a parent with children cannot be removed."""
        below = await world.committed("base")
        child = await world.begin_snapshot("k", "base")
        assert child.raw_parent == below.raw_name
        await world.finish(child)
        assert (await world.stat("k")).parent == "base"
        await refused(
            world.remove("base"), errors.FailedPrecondition, "cannot remove snapshot with child: failed precondition"
        )
        intent = await world.begin_commit_snapshot("n", "k")
        assert intent.raw_parent == ""  # the backend knows it
        await world.finish(intent)
        assert (await world.stat("n")).parent == "base"
        await refused(
            world.remove("base"), errors.FailedPrecondition, "cannot remove snapshot with child: failed precondition"
        )
        await world.remove("n")
        await world.remove("base")

    async def test_a_parent_must_exist(self, world: World) -> None:
        """The call is NOT_FOUND, also if the parent is removed between begin and end."""
        await refused(world.begin_snapshot("k", "p"), errors.NotFound, "parent snapshot p does not exist: not found")
        await world.committed("p")
        intent = await world.begin_snapshot("k", "p")
        await world.remove("p")
        await refused(world.finish(intent), errors.NotFound, "parent snapshot p does not exist: not found")
        await refused(world.stat("k"), errors.NotFound, "snapshot k does not exist: not found")

    async def test_rebase_sets_the_parent_of_an_orphan(self, world: World) -> None:
        """A parent given at commit counts if the snapshot was prepared without one."""
        below = await world.committed("base")
        await world.snapshot("k")
        intent = await world.begin_commit_snapshot("n", "k", parent="base")
        assert intent.raw_parent == below.raw_name
        await world.finish(intent)
        assert (await world.stat("n")).parent == "base"
        await world.snapshot("k2", "base")
        intent = await world.begin_commit_snapshot("n2", "k2", parent="n")
        assert intent.raw_parent == ""
        await world.finish(intent)
        assert (await world.stat("n2")).parent == "base"
        await world.snapshot("k3")
        await refused(
            world.begin_commit_snapshot("n3", "k3", parent="x"),
            errors.NotFound,
            "parent snapshot x does not exist: not found",
        )

    async def test_a_chain_may_be_committed_at_once(self, world: World) -> None:
        """A commit may begin once its parent's has begun; it ends after that one, whichever reports first."""
        for key in "abc":
            await world.snapshot(key)
        first = await world.begin_commit_snapshot("1", "a")
        second = await world.begin_commit_snapshot("2", "b", parent="1")
        third = await world.begin_commit_snapshot("3", "c", parent="2")
        assert (second.raw_parent, third.raw_parent) == (first.raw_name, second.raw_name)
        ends = [asyncio.ensure_future(world.finish(intent)) for intent in (third, second)]
        await world.ingests()
        assert not any(end.done() for end in ends)
        await world.finish(first)
        await asyncio.gather(*ends)
        assert [(await world.stat(name)).parent for name in "123"] == ["", "1", "2"]

    async def test_no_commit_of_a_broken_chain_succeeds(self, world: World) -> None:
        """If the parent's commit fails, its children's commits are NOT_FOUND."""
        for key in "ab":
            await world.snapshot(key)
        first = await world.begin_commit_snapshot("1", "a")
        second = await world.begin_commit_snapshot("2", "b", parent="1")
        end = asyncio.ensure_future(world.finish(second))
        await world.ingests()
        await world.cancel(first)
        await refused(end, errors.NotFound, "parent snapshot 1 does not exist: not found")
        await refused(world.stat("2"), errors.NotFound, "snapshot 2 does not exist: not found")
        assert (await world.stat("a")).kind == snapshots_pb2.ACTIVE

    async def test_a_chain_needs_the_very_parent_it_was_put_on(self, world: World) -> None:
        """A different snapshot with the parent's name is a different parent: NOT_FOUND."""
        for key in "abc":
            await world.snapshot(key)
        first = await world.begin_commit_snapshot("1", "a")
        second = await world.begin_commit_snapshot("2", "b", parent="1")
        await world.cancel(first)
        await world.finish(await world.begin_commit_snapshot("1", "c"))
        await refused(world.finish(second), errors.NotFound, "parent snapshot 1 does not exist: not found")

    async def test_keys_and_names_are_taken_once(self, world: World) -> None:
        """A second one is ALREADY_EXISTS, and the lease holds the existing one."""
        await world.committed("n")
        await world.snapshot("k")
        world.lease = "m"
        await world.leases.Create(leases_pb2.CreateRequest(id="m"), headers=headers(world.namespace))
        await refused(world.begin_snapshot("k"), errors.AlreadyExists, 'snapshot "k": already exists')
        await refused(world.begin_snapshot("n"), errors.AlreadyExists, 'snapshot "n": already exists')
        await refused(world.begin_commit_snapshot("n", "k"), errors.AlreadyExists, 'snapshot "n": already exists')
        assert await world.held() == {("snapshots/overlayfs", "k"), ("snapshots/overlayfs", "n")}
        await (await world.beside()).snapshot("k")

    async def test_a_second_prepare_of_a_key_waits_for_the_first(self, world: World) -> None:
        """It is then ALREADY_EXISTS."""
        first = await world.begin_snapshot("k")
        second = asyncio.ensure_future(world.begin_snapshot("k"))
        await world.ingests()
        assert not second.done()
        await world.finish(first)
        await refused(second, errors.AlreadyExists, 'snapshot "k": already exists')

    async def test_two_commits_of_a_name(self, world: World) -> None:
        """The second one waits; it is then ALREADY_EXISTS, and its key stays."""
        await world.snapshot("k1")
        await world.snapshot("k2")
        first = await world.begin_commit_snapshot("n", "k1")
        second = asyncio.ensure_future(world.begin_commit_snapshot("n", "k2"))
        await world.finish(first)
        await refused(second, errors.AlreadyExists, 'snapshot "n": already exists')
        assert (await world.stat("k2")).kind == snapshots_pb2.ACTIVE

    async def test_commit_needs_the_key(self, world: World) -> None:
        """Without it, the call is NOT_FOUND."""
        await refused(world.begin_commit_snapshot("n", "k"), errors.NotFound, "snapshot k does not exist: not found")

    async def test_cancelled_it_is_as_before(self, world: World) -> None:
        """After a cancelled Prepare there is no snapshot, after a cancelled Commit an active one."""
        intent = await world.begin_snapshot("k")
        await world.cancel(intent)
        await refused(world.stat("k"), errors.NotFound, "snapshot k does not exist: not found")
        again = await world.begin_snapshot("k")
        assert again.raw_key != intent.raw_key
        await world.finish(again)
        await world.cancel(await world.begin_commit_snapshot("n", "k"))
        assert (await world.resolve("k")).raw_key == again.raw_key

    async def test_a_finish_is_repeatable(self, world: World) -> None:
        """Finish can be repeated for each operation."""
        intent = await world.begin_snapshot("k")
        assert await world.finish(intent) == await world.finish(intent)
        intent = await world.begin_commit_snapshot("n", "k")
        assert await world.finish(intent) == await world.finish(intent)
        assert [(i.name, i.kind) for i in await world.list()] == [("n", snapshots_pb2.COMMITTED)]

    async def test_remove_takes_the_record(self, world: World) -> None:
        """A second Remove is NOT_FOUND; the event is part of the answer."""
        await world.snapshot("k")
        [event] = (await world.remove("k")).events
        assert event.topic == "/snapshot/remove"
        assert unpack(event.event, snapshot_events.SnapshotRemove) == snapshot_events.SnapshotRemove(
            key="k", snapshotter="overlayfs"
        )
        assert await world.held() == set()
        await refused(world.remove("k"), errors.NotFound, "snapshot k does not exist: not found")
        await refused(world.resolve("k"), errors.NotFound, "snapshot k does not exist: not found")

    async def test_update_changes_labels(self, world: World) -> None:
        """All labels change, or those that the mask names; inherited ones are passed on, with a mask of their own."""
        await world.snapshot("k", labels={"a": "1", "containerd.io/snapshot/x": "1", "containerd.io/snapshot/y": "1"})

        async def update(labels: dict[str, str], *paths: str) -> pb.UpdatedSnapshot:
            request = snapshots_pb2.UpdateSnapshotRequest(
                snapshotter="overlayfs",
                info=snapshots_pb2.Info(name="k", labels=labels),
                update_mask=FieldMask(paths=paths),
            )
            answer: pb.UpdatedSnapshot = await world.records.UpdateSnapshot(request, headers=world.headers)
            assert answer.info == await world.stat("k")
            assert answer.raw_key == (await world.resolve("k")).raw_key
            return answer

        answer = await update({"a": "2", "b": "2"}, "labels.a")
        assert dict(answer.info.labels) == {"a": "2", "containerd.io/snapshot/x": "1", "containerd.io/snapshot/y": "1"}
        assert (dict(answer.raw_labels), list(answer.raw_mask.paths)) == ({}, [])
        answer = await update({"containerd.io/snapshot/x": "2"}, "labels")
        assert dict(answer.info.labels) == {"containerd.io/snapshot/x": "2"}
        assert dict(answer.raw_labels) == {"containerd.io/snapshot/x": "2", "containerd.io/snapshot/y": ""}
        assert list(answer.raw_mask.paths) == ["labels.containerd.io/snapshot/x", "labels.containerd.io/snapshot/y"]
        assert dict((await update({"c": "1"})).info.labels) == {"c": "1"}
        await refused(
            update({}, "parent"),
            errors.InvalidArgument,
            'cannot update "parent" field on snapshot "k": invalid argument',
        )
        request = snapshots_pb2.UpdateSnapshotRequest(snapshotter="overlayfs", info=snapshots_pb2.Info(name="none"))
        await refused(
            world.records.UpdateSnapshot(request, headers=world.headers),
            errors.NotFound,
            "snapshot none does not exist: not found",
        )

    async def test_lists_are_filtered(self, world: World) -> None:
        """Filters select by kind, name, parent and labels; results are ordered by name; each snapshotter has its own
        list.
        """
        await world.committed("base", labels={"a": "1"})
        await world.snapshot("k", "base")
        await world.snapshot("v", "base", view=True)
        await world.finish(await world.begin_snapshot("k", snapshotter="native"))
        assert names(await world.list(), "name") == ["base", "k", "v"]
        assert names(await world.list("kind==active"), "name") == ["k"]
        assert names(await world.list("kind==view", "kind==committed"), "name") == ["base", "v"]
        assert names(await world.list("parent==base"), "name") == ["k", "v"]
        assert names(await world.list("labels.a==1"), "name") == ["base"]
        assert names(await world.list("name~=a"), "name") == ["base"]
        with pytest.raises(errors.InvalidArgument):
            await world.list("name==")

    async def test_snapshotters_are_those_of_the_gateway(self, world: World) -> None:
        """Others are INVALID_ARGUMENT, in containerd's words."""
        await refused(
            world.begin_snapshot("k", snapshotter="zfs"),
            errors.InvalidArgument,
            "snapshotter not loaded: zfs: invalid argument",
        )
        await refused(
            world.begin_snapshot("k", snapshotter=""),
            errors.InvalidArgument,
            "snapshotter argument missing: invalid argument",
        )
        for snapshotter, message in (("zfs", "snapshotter not loaded: zfs"), ("", "snapshotter argument missing")):
            request = snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter, key="k")
            await refused(
                world.snapshots.Stat(request, headers=world.headers),
                errors.InvalidArgument,
                f"{message}: invalid argument",
            )

    async def test_labels_are_checked(self, world: World) -> None:
        """Prepare and Commit check them."""
        message = (
            "info.Labels: label key and value length (4097 bytes) greater than maximum size (4096 bytes), key: "
            "k: invalid argument"
        )
        await refused(world.begin_snapshot("k", labels={"k": "v" * 4096}), errors.InvalidArgument, message)
        await world.snapshot("k")
        await refused(world.begin_commit_snapshot("n", "k", labels={"k": "v" * 4096}), errors.InvalidArgument, message)

    async def test_a_recorded_target_needs_no_snapshot(self, world: World) -> None:
        """The call is ALREADY_EXISTS, and the lease holds the target."""
        await world.committed("target")
        world.lease = "m"
        await world.leases.Create(leases_pb2.CreateRequest(id="m"), headers=headers(world.namespace))
        await refused(
            world.begin_snapshot("k", labels={REF: "target"}),
            errors.AlreadyExists,
            'target snapshot "target": already exists',
        )
        assert await world.held() == {("snapshots/overlayfs", "target")}

    async def test_an_existing_snapshot_of_the_backend_is_adopted(self, world: World) -> None:
        """The existing snapshot becomes the record of the target, with the labels of both; the caller gets
        ALREADY_EXISTS.
        """
        below = await world.committed("base")
        intent = await world.begin_snapshot("k", "base", labels={REF: "target", "a": "1"})
        assert (intent.target, dict(intent.raw_labels)) == ("target", {REF: "target"})
        world.raw.snapshots["raw-target"] = "committed"
        found = snapshots_pb2.Info(
            name="raw-target",
            parent=below.raw_name,
            kind=snapshots_pb2.COMMITTED,
            labels={REF: "target", "a": "9", "b": "2"},
        )
        for _ in range(2):
            await refused(
                world.finish(intent, adopted=[found]),
                errors.AlreadyExists,
                'target snapshot "target" from snapshotter: already exists',
            )
        info = await world.stat("target")
        assert (info.kind, info.parent, dict(info.labels)) == (
            snapshots_pb2.COMMITTED,
            "base",
            {REF: "target", "a": "1", "b": "2"},
        )
        assert (await world.resolve("target")).raw_key == "raw-target"
        assert ("snapshots/overlayfs", "target") in await world.held()
        await refused(world.stat("k"), errors.NotFound, "snapshot k does not exist: not found")

    async def test_a_snapshot_with_another_parent_is_not_adopted(self, world: World) -> None:
        """If its parent is another one, the call is INVALID_ARGUMENT, and there is no record."""
        await world.committed("base")
        intent = await world.begin_snapshot("k", "base", labels={REF: "target"})
        world.raw.snapshots["raw-target"] = "committed"
        found = snapshots_pb2.Info(
            name="raw-target", parent="elsewhere", kind=snapshots_pb2.COMMITTED, labels={REF: "target"}
        )
        await refused(
            world.finish(intent, adopted=[found]),
            errors.InvalidArgument,
            "mismatched parent base from target target: invalid argument",
        )
        await refused(world.stat("target"), errors.NotFound, "snapshot target does not exist: not found")

    async def test_a_removed_snapshot_is_not_adopted(self, world: World) -> None:
        """The call is ABORTED: the caller may begin again."""
        intent = await world.begin_snapshot("k", labels={REF: "target"})
        found = snapshots_pb2.Info(name="raw-target", kind=snapshots_pb2.COMMITTED, labels={REF: "target"})
        await refused(
            world.finish(intent, adopted=[found]),
            errors.Aborted,
            "target snapshot target was removed meanwhile: aborted",
        )
        await world.snapshot("k", labels={REF: "target"})


class DeadGatewaySuite(Suite):
    """Intents that a dead gateway left open are resolved when the next one connects, by asking the raw services."""

    async def next_gateway(self, world: World) -> None:
        world.incarnation = str(uuid.uuid4())
        await world.connect()

    async def test_an_operation_that_was_done_is_finished(self, world: World, life: Life) -> None:
        """A commit of content, a Prepare and a commit of a snapshot get their records, and their events are
        published.
        """
        await world.open("r")
        await world.begin_commit("r", digest(1), 7, a="1")
        world.raw.blobs[digest(1)] = 7
        prepared = await world.begin_snapshot("k")
        world.raw.snapshots[prepared.raw_key] = "active"
        await world.snapshot("k2")
        committed = await world.begin_commit_snapshot("n", "k2")
        world.raw.snapshots[committed.raw_name] = "committed"
        await self.next_gateway(world)

        async def recorded() -> bool:
            return [i.name for i in await world.list()] == ["k", "n"] and await world.ingests() == []

        await eventually_async(recorded)
        assert dict((await world.info(digest(1))).labels) == {"a": "1"}

        async def published() -> bool:
            return {topic for topic, _ in life.published(world.namespace)} == {
                "/content/create",
                "/snapshot/prepare",
                "/snapshot/commit",
            }

        await eventually_async(published)
        assert await world.held() == {
            ("content", digest(1)),
            ("snapshots/overlayfs", "k"),
            ("snapshots/overlayfs", "n"),
        }

    async def test_an_operation_that_was_not_done_is_cancelled(self, world: World) -> None:
        """Everything is as before, and can be begun again."""
        ingest = await world.open("r")
        world.raw.ingests.add(ingest.raw_ref)
        world.raw.blobs[digest(1)] = 7  # by another client: the ingest itself was not committed
        commit = await world.begin_commit("r", digest(1))
        prepared = await world.begin_snapshot("k")
        await world.snapshot("k2")
        committing = await world.begin_commit_snapshot("n", "k2")
        await self.next_gateway(world)
        # each of these waits until the operations that have begun have ended
        again = [
            await world.begin_commit("r", digest(1)),
            await world.begin_snapshot("k"),
            await world.begin_commit_snapshot("n", "k2"),
        ]
        assert await world.ingests() == ["r"]
        assert names(await world.list(), "name") == ["k2"]
        for intent in (commit, prepared, committing):
            await refused(world.finish(intent, digest(99), 1), errors.NotFound, f"open intent {intent.id}: not found")
        for intent in again:
            await world.finish(intent, digest(1), 7)
        assert names(await world.list(), "name") == ["k", "n"]

    async def test_an_intent_with_an_unknown_outcome_stays_open(self, world: World) -> None:
        """It stays open until the raw service answers."""
        world.raw.away = True
        prepared = await world.begin_snapshot("k")
        world.raw.snapshots[prepared.raw_key] = "active"
        await self.next_gateway(world)
        await refused(world.stat("k"), errors.NotFound, "snapshot k does not exist: not found")
        world.raw.away = False

        async def recorded() -> bool:
            return names(await world.list(), "name") == ["k"]

        await eventually_async(recorded)

    async def test_the_same_gateway_keeps_its_intents(self, world: World) -> None:
        """Its intents stay open if metadata, not the gateway, was away."""
        intent = await world.begin_snapshot("k")
        await world.connect()
        await world.connect()
        await world.finish(intent)
        assert names(await world.list(), "name") == ["k"]

    async def test_a_late_finish_of_the_dead_still_counts(self, world: World) -> None:
        """It counts if the intent was not resolved yet; if it was, the answer is the same."""
        world.raw.away = True
        intent = await world.begin_snapshot("k")
        await self.next_gateway(world)
        first = await world.finish(intent)
        assert [e.topic for e in first.events] == ["/snapshot/prepare"]
        assert await world.finish(intent) == first
