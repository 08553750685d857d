"""The suite of containerd.services.sandbox.v1.Store. It runs on metadata's stores, its process, the gateway, and
containerd 2 itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as PbAny

from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.containerd.services.sandbox.v1 import sandbox_pb2 as pb
from api.containerd.services.sandbox.v1 import sandbox_stubs
from api.containerd.types.sandbox_pb2 import Sandbox
from services.kit import errors
from tests.suites.records_lives import Clients, headers, names, new_namespace

STORE = sandbox_stubs.STORE
SPEC = PbAny(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b'{"ociVersion":"1.0.2"}')
OPTIONS = PbAny(type_url="containerd.runc.v1.Options", value=b"\x08\x01\0\xff")
NOTHING = PbAny()


def sandbox(
    id_: str, *, runtime: str = "io.containerd.runc.v2", options: PbAny | None = None, **fields: Any
) -> Sandbox:
    """A sandbox as containerd's client makes it: it always names a runtime."""
    return Sandbox(sandbox_id=id_, runtime=Sandbox.Runtime(name=runtime, options=options), **fields)


def without_times(value: Sandbox) -> Sandbox:
    copy = Sandbox()
    copy.CopyFrom(value)
    copy.ClearField("created_at")
    copy.ClearField("updated_at")
    return copy


class SandboxesSuite:
    """A subclass has a fixture ``clients``."""

    @pytest.fixture
    def store(self, clients: Clients) -> Any:
        return clients(STORE)

    @pytest.fixture
    def namespace(self) -> str:
        return new_namespace()

    async def create(self, store: Any, namespace: str, value: Sandbox) -> Sandbox:
        return (await store.Create(pb.StoreCreateRequest(sandbox=value), headers=headers(namespace))).sandbox

    async def get(self, store: Any, namespace: str, id_: str) -> Sandbox:
        return (await store.Get(pb.StoreGetRequest(sandbox_id=id_), headers=headers(namespace))).sandbox

    async def update(self, store: Any, namespace: str, value: Sandbox, *paths: str) -> Sandbox:
        """The record after an update."""
        await store.Update(pb.StoreUpdateRequest(sandbox=value, fields=paths), headers=headers(namespace))
        return await self.get(store, namespace, value.sandbox_id)

    async def delete(self, store: Any, namespace: str, id_: str) -> None:
        await store.Delete(pb.StoreDeleteRequest(sandbox_id=id_), headers=headers(namespace))

    async def list(self, store: Any, namespace: str, *filters: str) -> Sequence[str]:
        found = (await store.List(pb.StoreListRequest(filters=filters), headers=headers(namespace))).list
        return names(found, "sandbox_id")

    async def test_what_is_created_comes_back(self, store: Any, namespace: str) -> None:
        """All fields come back, Any values byte for byte; the times are the server's, and a label without a value is
        none.
        """
        made = sandbox(
            "s1",
            options=OPTIONS,
            spec=SPEC,
            sandboxer="mine",
            labels={"a": "1", "empty": ""},
            extensions={"x": OPTIONS, "y": NOTHING},
        )
        made.created_at.seconds = 1
        created = await self.create(store, namespace, made)
        assert created.created_at.seconds > 1_600_000_000
        assert created.created_at == created.updated_at
        found = await self.get(store, namespace, "s1")
        assert found == created
        del made.labels["empty"]
        assert without_times(found) == without_times(made)

    async def test_a_list_has_whole_records_in_order_of_ids(self, store: Any, namespace: str) -> None:
        """Of this namespace only; one without any lists nothing."""
        assert await self.list(store, namespace) == []
        other = new_namespace()
        await self.create(store, other, sandbox("elsewhere"))
        made = [
            await self.create(store, namespace, sandbox(id_, spec=SPEC, extensions={"x": OPTIONS}))
            for id_ in ("b", "a", "B")
        ]
        found = (await store.List(pb.StoreListRequest(), headers=headers(namespace))).list
        assert list(found) == [made[2], made[1], made[0]]
        assert await self.list(store, other) == ["elsewhere"]

    async def test_ids_are_identifiers(self, store: Any, namespace: str) -> None:
        """Other ids are INVALID_ARGUMENT, in containerd's words, and nothing is stored."""
        for bad in ("", "a/b", "a..b", "_a", "a" * 77):
            with pytest.raises(errors.InvalidArgument) as caught:
                await self.create(store, namespace, sandbox(bad))
            assert str(caught.value).startswith("failed to validate sandbox: invalid sandbox ID: identifier ")
            assert str(caught.value).endswith(": invalid argument")
        assert await self.list(store, namespace) == []
        await self.create(store, namespace, sandbox("a" * 76))

    async def test_runtime_and_sandboxer_may_be_empty(self, store: Any, namespace: str) -> None:
        """ctr 2.1 names no sandboxer."""
        created = await self.create(store, namespace, sandbox("s", runtime=""))
        assert (created.runtime.name, created.sandboxer, created.HasField("spec")) == ("", "", False)

    async def test_an_id_is_taken_once_in_each_namespace(self, store: Any, namespace: str) -> None:
        """The id is ALREADY_EXISTS in the same namespace, and free in another; the record stays as it was."""
        first = await self.create(store, namespace, sandbox("s", labels={"a": "1"}))
        with pytest.raises(errors.AlreadyExists) as caught:
            await self.create(store, namespace, sandbox("s"))
        assert str(caught.value) == 'write error: sandbox bucket "s" already exists: already exists'
        assert await self.get(store, namespace, "s") == first
        await self.create(store, new_namespace(), sandbox("s"))

    async def test_an_unknown_one_is_not_found(self, store: Any, namespace: str) -> None:
        """Get, Update and Delete answer NOT_FOUND, in other words where the namespace never had a sandbox."""

        async def refused(what: Any) -> str:
            with pytest.raises(errors.NotFound) as caught:
                await what
            return str(caught.value)

        for what in (self.get(store, namespace, "s"), self.delete(store, namespace, "s")):
            assert await refused(what) == "no sandbox buckets: not found"
        assert await refused(self.update(store, namespace, sandbox("s"))) == "no sandbox buckets: not found"
        await self.create(store, namespace, sandbox("other"))
        assert await refused(self.get(store, namespace, "s")) == 'bucket "s" not found: not found'
        assert await refused(self.update(store, namespace, sandbox("s"))) == 'bucket "s" not found: not found'
        assert await refused(self.delete(store, namespace, "s")) == 'failed to delete sandbox "s": not found'

    async def test_a_namespace_is_required(self, store: Any) -> None:
        """Calls without a namespace are FAILED_PRECONDITION."""
        for call in (
            store.List(pb.StoreListRequest()),
            store.Create(pb.StoreCreateRequest(sandbox=sandbox("s"))),
            store.Update(pb.StoreUpdateRequest(sandbox=sandbox("s"))),
            store.Get(pb.StoreGetRequest(sandbox_id="s")),
            store.Delete(pb.StoreDeleteRequest(sandbox_id="s")),
        ):
            with pytest.raises(errors.FailedPrecondition) as caught:
                await call
            assert str(caught.value) == "namespace is required: failed precondition"

    async def test_lists_are_filtered(self, store: Any, namespace: str) -> None:
        """Filters select by id and labels, and by nothing else; one matching filter suffices."""
        await self.create(store, namespace, sandbox("b", sandboxer="mine", labels={"io.team": "red"}))
        await self.create(store, namespace, sandbox("a", labels={"io.team": "blue"}))
        assert await self.list(store, namespace, "id==b") == ["b"]
        assert await self.list(store, namespace, "id~=^[ab]$") == ["a", "b"]
        assert await self.list(store, namespace, 'labels."io.team"==blue') == ["a"]
        assert await self.list(store, namespace, "labels.io.team") == ["a", "b"]
        assert await self.list(store, namespace, "id==b,labels.io.team==blue") == []
        assert await self.list(store, namespace, "id==b", "labels.io.team==blue") == ["a", "b"]
        assert await self.list(store, namespace, "sandboxer==mine") == []
        assert await self.list(store, namespace, "runtime.name") == []
        with pytest.raises(errors.InvalidArgument):
            await self.list(store, namespace, "id==")

    async def test_update_without_fields_replaces_labels_spec_and_runtime_options(
        self, store: Any, namespace: str
    ) -> None:
        """The sandboxer and the creation time stay, the update time changes."""
        old = await self.create(
            store, namespace, sandbox("s", options=SPEC, sandboxer="mine", spec=OPTIONS, labels={"a": "1"})
        )
        new = sandbox("s", options=OPTIONS, sandboxer="other", spec=SPEC, labels={"b": "2"}, extensions={"x": OPTIONS})
        found = await self.update(store, namespace, new)
        new.sandboxer = "mine"
        assert without_times(found) == without_times(new)
        assert found.created_at == old.created_at
        assert found.updated_at.ToNanoseconds() > old.updated_at.ToNanoseconds()

    async def test_the_answer_of_an_update_is_the_record(self, store: Any, namespace: str) -> None:
        """Where all that it names is there."""
        await self.create(store, namespace, sandbox("s"))
        request = pb.StoreUpdateRequest(
            sandbox=sandbox("s", spec=SPEC, labels={"a": "1"}, extensions={"x": OPTIONS}),
            fields=["labels.a", "spec", "extensions.x"],
        )
        answer = await store.Update(request, headers=headers(namespace))
        assert answer.sandbox == await self.get(store, namespace, "s")
        assert dict(answer.sandbox.labels) == {"a": "1"}

    async def test_update_with_fields_changes_only_those(self, store: Any, namespace: str) -> None:
        """Single labels and extensions can be changed too; a label that is absent is removed."""
        await self.create(
            store,
            namespace,
            sandbox("s", options=SPEC, spec=SPEC, labels={"a": "1", "b": "2"}, extensions={"x": OPTIONS}),
        )
        new = sandbox(
            "s", runtime="other", spec=OPTIONS, labels={"a": "9", "c": "3"}, extensions={"x": SPEC, "y": SPEC}
        )
        found = await self.update(store, namespace, new, "labels.a", "labels.b")
        assert (dict(found.labels), found.spec, found.extensions["x"]) == ({"a": "9"}, SPEC, OPTIONS)
        found = await self.update(store, namespace, new, "extensions.y")
        assert dict(found.extensions) == {"x": OPTIONS, "y": SPEC}
        found = await self.update(store, namespace, new, "labels", "spec")
        assert (dict(found.labels), found.spec, found.runtime.name) == (
            {"a": "9", "c": "3"},
            OPTIONS,
            "io.containerd.runc.v2",
        )
        found = await self.update(store, namespace, new, "runtime")
        assert (found.runtime.name, found.runtime.options) == ("other", SPEC)

    async def test_what_an_update_leaves_out_stays(self, store: Any, namespace: str) -> None:
        """A spec, runtime options and extensions that are absent are not removed, though the update names them. An
        extension that is named by itself becomes empty.
        """
        await self.create(
            store,
            namespace,
            sandbox("s", options=OPTIONS, spec=SPEC, labels={"a": "1"}, extensions={"x": OPTIONS, "y": SPEC}),
        )
        found = await self.update(store, namespace, sandbox("s", extensions={"x": SPEC, "z": SPEC}))
        assert (found.spec, found.runtime.options, dict(found.labels)) == (SPEC, OPTIONS, {})
        assert dict(found.extensions) == {"x": SPEC, "y": SPEC, "z": SPEC}
        found = await self.update(store, namespace, sandbox("s"), "extensions", "spec", "extensions.y")
        assert found.spec == SPEC
        assert dict(found.extensions) == {"x": SPEC, "y": NOTHING, "z": SPEC}

    async def test_what_cannot_be_updated_is_refused(self, store: Any, namespace: str) -> None:
        """The runtime's name without fields, and fields that are unknown; then nothing changes."""
        made = await self.create(store, namespace, sandbox("s", labels={"a": "1"}))

        async def refused(value: Sandbox, *paths: str) -> str:
            with pytest.raises(errors.InvalidArgument) as caught:
                await self.update(store, namespace, value, *paths)
            return str(caught.value)

        assert (
            await refused(sandbox("s", runtime="other")) == "sandbox.Runtime.Name field is immutable: invalid argument"
        )
        for path in ("sandboxer", "id", "created_at", "Labels"):
            assert (
                await refused(sandbox("s"), "labels", path)
                == f'cannot update "{path}" field on sandbox "s": invalid argument'
            )
        assert await self.get(store, namespace, "s") == made

    async def test_delete_removes(self, store: Any, namespace: str) -> None:
        """Delete removes only that sandbox, and its id is free again."""
        await self.create(store, namespace, sandbox("a"))
        await self.create(store, namespace, sandbox("b"))
        await self.delete(store, namespace, "a")
        assert await self.list(store, namespace) == ["b"]
        await self.create(store, namespace, sandbox("a", labels={"new": "1"}))
        assert dict((await self.get(store, namespace, "a")).labels) == {"new": "1"}

    async def test_a_namespace_is_removed_with_its_sandboxes(
        self, store: Any, namespace: str, clients: Clients
    ) -> None:
        """They do not keep it, unlike containers and images."""
        await self.create(store, namespace, sandbox("s"))
        namespaces = clients(namespaces_stubs.NAMESPACES)
        await namespaces.Delete(namespaces_pb2.DeleteNamespaceRequest(name=namespace))
        assert await self.list(store, namespace) == []

    async def test_creating_one_makes_the_namespace(self, store: Any, namespace: str, clients: Clients) -> None:
        """As every write does."""
        await self.create(store, namespace, sandbox("s"))
        found = await clients(namespaces_stubs.NAMESPACES).List(namespaces_pb2.ListNamespacesRequest())
        assert namespace in names(found.namespaces, "name")
