"""The queue of a tap, and the text of messages: whatever is in them, what is not listed is not shown."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.leases.v1 import leases_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from api.containerd.types import mount_pb2
from gateway import taps_server
from gateway.choices import Choice
from gateway.shown_messages import DECODED, LONGEST, SHOWN, text
from gateway.taps import BATCH, EVENTS, SIZE, Passed, Seen, Tap

SECRET = "hunter2-hunter2"
SERVICES = [
    "containerd.services.containers.v1.Containers",
    "containerd.services.content.v1.Content",
    "containerd.services.diff.v1.Diff",
    "containerd.services.images.v1.Images",
    "containerd.services.leases.v1.Leases",
    "containerd.services.namespaces.v1.Namespaces",
    "containerd.services.snapshots.v1.Snapshots",
    "containerd.services.streaming.v1.Streaming",
    "containerd.services.tasks.v1.Tasks",
    "containerd.services.transfer.v1.Transfer",
    "splitd.localfiles.v1.LocalFiles",
    "splitd.records.v1.Records",
    "splitd.removals.v1.Removals",
]
METHODS = [
    f"/{service}/{method.name}"
    for service in SERVICES
    for method in descriptor_pool.Default().FindServiceByName(service).methods
]
CONTENT = "/containerd.services.content.v1.Content"
SNAPSHOTS = "/containerd.services.snapshots.v1.Snapshots"


# ------------------------------------------------------------------------------------------ the queue


def seen(number: int) -> Seen:
    return Seen(number, 1, "content", f"{CONTENT}/Info", "n", "")


async def test_a_slow_reader_is_told_how_many_it_lost() -> None:
    """The queue keeps the oldest; what comes while it is full is dropped, and counted once."""
    tap = Tap(Choice())
    for number in range(EVENTS + 17):
        tap.put(seen(number))
    numbers: list[int] = []
    lost = []
    while len(numbers) < EVENTS:
        events, dropped = await tap.events()
        assert len(events) <= BATCH
        numbers += [event.call for event in events]
        lost.append(dropped)
    assert numbers == list(range(EVENTS))
    assert (lost[0], sum(lost), tap.dropped) == (17, 17, 17)
    waiting = asyncio.ensure_future(tap.events())
    await asyncio.sleep(0)
    assert not waiting.done()
    tap.put(seen(99))
    assert [event.call for event in (await waiting)[0]] == [99]


async def test_long_messages_fill_the_queue_sooner() -> None:
    """Bytes are bounded as well as events."""
    tap = Tap(Choice(), messages=True)
    for number in range(EVENTS):
        tap.put(Passed(number, 1, f"{CONTENT}/Info", False, 1, "x" * LONGEST))
    assert tap.dropped == EVENTS - SIZE // LONGEST
    await tap.events()
    tap.put(Passed(0, 1, f"{CONTENT}/Info", False, 1, "x" * LONGEST))
    assert tap.dropped == EVENTS - SIZE // LONGEST


# ------------------------------------------------------------------------------------------ the text


def filled(kind: Descriptor | None, depth: int = 0) -> Any:
    """A message with the secret in all fields that can have it, but not in those that are shown."""
    assert kind is not None
    message = message_factory.GetMessageClass(kind)()
    shown = SHOWN.get(kind.full_name, "").split()
    for each in kind.fields:
        if each.name in shown or depth > 4 or kind.full_name == "google.protobuf.Timestamp":
            continue
        if each.message_type is not None and each.message_type.GetOptions().map_entry:
            of_map = each.message_type.fields_by_name["value"]
            if of_map.type == FieldDescriptor.TYPE_STRING:
                getattr(message, each.name)["a key"] = SECRET
            else:
                getattr(message, each.name)["a key"].CopyFrom(filled(of_map.message_type, depth + 1))
        elif each.message_type is not None:
            inner = filled(each.message_type, depth + 1)
            if each.is_repeated:
                getattr(message, each.name).append(inner)
            else:
                getattr(message, each.name).CopyFrom(inner)
        elif each.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            value = SECRET if each.type == FieldDescriptor.TYPE_STRING else SECRET.encode()
            if each.is_repeated:
                getattr(message, each.name).append(value)
            else:
                setattr(message, each.name, value)
    return message


@pytest.mark.parametrize("path", METHODS)
def test_no_field_is_shown_that_is_not_in_the_table(path: str) -> None:
    """Of any request and answer of any service, also of those that the API gets next."""
    service, _, name = path[1:].rpartition("/")
    method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    for answer, kind in ((False, method.input_type), (True, method.output_type)):
        assert SECRET not in text(path, filled(kind).SerializeToString(), answer=answer)


def test_the_table_is_of_fields_that_there_are() -> None:
    """Each has text. Credentials are in none."""
    pool = descriptor_pool.Default()
    for kind, names in SHOWN.items():
        fields = pool.FindMessageTypeByName(kind).fields_by_name
        for name in names.split():
            assert fields[name].type == FieldDescriptor.TYPE_STRING, f"{kind}.{name}"
    for kind in ("AuthResponse", "AuthRequest", "RegistryResolver", "Data"):
        assert f"containerd.types.transfer.{kind}" not in SHOWN


def test_the_methods_that_can_be_chosen_are_those_that_are_known() -> None:
    """Each kind of route has some."""
    assert set(taps_server.METHODS) == {"content", "snapshots", "diff", "images", "tasks", "sandbox", "metadata"}
    assert {"Write", "Read", "Info", "Locate"} <= set(taps_server.METHODS["content"])
    assert {"BeginSnapshot", "Finish"} <= set(taps_server.METHODS["metadata"])


@pytest.mark.parametrize(
    ("path", "message", "answer", "shown"),
    [
        (
            f"{CONTENT}/Write",
            content_pb2.WriteContentRequest(action=content_pb2.COMMIT, offset=7, expected="sha256:a", data=b"12345"),
            False,
            'action: COMMIT expected: "sha256:a" offset: 7 data: (5 bytes)',
        ),
        (
            f"{SNAPSHOTS}/Mounts",
            snapshots_pb2.MountsResponse(
                mounts=[
                    mount_pb2.Mount(
                        type="overlay", source="overlay", options=["index=off", "lowerdir=/a:/b", "password=x"]
                    ),
                    mount_pb2.Mount(type="cifs", source="//user:password@host/share"),
                    mount_pb2.Mount(type="bind", source="/a", options=["rbind", "ro"]),
                ]
            ),
            True,
            'mounts: [{type: "overlay" source: "overlay" options: ["index=off", "lowerdir=/a:/b", 1 more]}, '
            '{type: "cifs" source: (26 characters)}, {type: "bind" source: "/a" options: ["rbind", "ro"]}]',
        ),
        (f"{SNAPSHOTS}/Usage", snapshots_pb2.UsageResponse(size=1, inodes=2), True, "size: 1 inodes: 2"),
        (
            "/containerd.services.leases.v1.Leases/List",
            leases_pb2.ListRequest(filters=["labels.password==x"] * 10),
            False,
            f"filters: [{', '.join(['(18 characters)'] * 8)}, and 2 more]",
        ),
    ],
)
def test_what_is_shown(path: str, message: Any, answer: bool, shown: str) -> None:
    """Names, digests, numbers; the usual options of mounts."""
    assert text(path, message.SerializeToString(), answer=answer) == shown


def test_what_cannot_be_shown() -> None:
    """Its size says that it was there."""
    assert text("/a.B/C", b"123", answer=False) == "(3 bytes of a method that is not known)"
    assert text("nonsense", b"", answer=False) == "(0 bytes of a method that is not known)"
    assert (
        text(f"{CONTENT}/Info", b"\xff", answer=True)
        == "(1 bytes that are no containerd.services.content.v1.InfoResponse)"
    )
    big = content_pb2.WriteContentRequest(data=bytes(DECODED)).SerializeToString()
    assert text(f"{CONTENT}/Write", big, answer=False) == f"({len(big)} bytes, more than are decoded here)"
    long = content_pb2.InfoRequest(digest="x" * 5000).SerializeToString()
    assert text(f"{CONTENT}/Info", long, answer=False) == f'digest: "{"x" * 197}..."'
    many = leases_pb2.ListResponse(leases=[leases_pb2.Lease(id="l" * 150)] * 20).SerializeToString()
    assert len(text("/containerd.services.leases.v1.Leases/List", many, answer=True)) == LONGEST


def test_an_any_within_an_any_ends() -> None:
    """As deep as somebody may nest them."""
    inner = AnyMessage(type_url="a")
    for _ in range(50):
        inner = AnyMessage(type_url="google.protobuf.Any", value=inner.SerializeToString())
    shown = text("/containerd.services.streaming.v1.Streaming/Stream", inner.SerializeToString(), answer=False)
    assert shown.count("type_url") < 10
