"""The suite of containerd.services.events.v1.Events. It runs on the exchange over a socket, on the gateway, and on
containerd itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as PbAny
from google.protobuf.message import Message

from api.containerd.events import container_pb2, image_pb2, task_pb2
from api.containerd.services.events.v1 import events_pb2 as pb
from api.containerd.services.events.v1 import events_stubs
from api.containerd.types.event_pb2 import Envelope
from services.kit import errors
from services.kit.any import pack, unpack
from services.kit.rpc import NAMESPACE, Channel

EVENTS = events_stubs.EVENTS
_numbers = itertools.count()


async def publish(events: Any, topic: str, event: Message, namespace: str = "suite") -> None:
    """Publish as a client of ``namespace``."""
    value = event if isinstance(event, PbAny) else pack(event)
    await events.Publish(pb.PublishRequest(topic=topic, event=value), headers={NAMESPACE: namespace})


def exit_of(container: str, pid: int = 7, exec_id: str = "") -> task_pb2.TaskExit:
    """The exit event of a container's process: of its init if no exec is named."""
    event = task_pb2.TaskExit(container_id=container, id=exec_id or container, pid=pid, exit_status=3)
    event.exited_at.FromSeconds(1_700_000_000)
    return event


class Subscriber:
    """An open Subscribe call. Nothing on the wire says when a subscription is in place, so markers are published until
    one arrives.
    """

    def __init__(self, events: Any, stream: AsyncIterator[Envelope]) -> None:
        self._events = events
        self._stream = stream
        self._name = f"/marker/{next(_numbers)}"

    @property
    def marker(self) -> str:
        return self._name

    async def in_place(self) -> None:
        first = asyncio.ensure_future(self._stream.__anext__())
        while not first.done():
            await self._mark()
            await asyncio.wait([first], timeout=0.1)
        await first
        await self.seen()

    async def _mark(self, last: bool = False) -> None:
        await publish(self._events, self._name + ("/last" if last else ""), task_pb2.TaskOOM())

    async def seen(self) -> list[Envelope]:
        """All events that have come: up to an event that is published now."""
        await self._mark(last=True)
        found = []
        async with asyncio.timeout(10):
            while (envelope := await self._stream.__anext__()).topic != self._name + "/last":
                if not envelope.topic.startswith("/marker/"):
                    found.append(envelope)
        return found

    async def topics(self) -> list[str]:
        return [envelope.topic for envelope in await self.seen()]


@contextlib.asynccontextmanager
async def subscribed(events: Any, *filters: str) -> AsyncIterator[Subscriber]:
    """A subscriber whose subscription is in place."""
    stream: Any = None
    subscriber = Subscriber(events, stream)
    wanted = [*filters, f"topic~=^{subscriber.marker}(/last)?$"] if filters else []
    stream = events.Subscribe(pb.SubscribeRequest(filters=wanted))
    subscriber._stream = stream
    async with contextlib.aclosing(stream):
        await subscriber.in_place()
        yield subscriber


class EventsSuite:
    """A subclass has a fixture ``events``: a client of the service."""

    async def test_an_event_arrives_as_published(self, events: Any) -> None:
        """Namespace, topic, type and bytes are the publisher's; the time is that of publishing."""
        before = time.time()
        async with subscribed(events) as subscriber:
            await publish(events, "/tasks/oom", task_pb2.TaskOOM(container_id="c1"), "teams.blue")
            [envelope] = await subscriber.seen()
        assert (envelope.namespace, envelope.topic, envelope.event.type_url) == (
            "teams.blue",
            "/tasks/oom",
            "containerd.events.TaskOOM",
        )
        assert unpack(envelope.event, task_pb2.TaskOOM) == task_pb2.TaskOOM(container_id="c1")
        assert before <= envelope.timestamp.ToNanoseconds() / 1e9 <= time.time()

    async def test_a_forwarded_envelope_is_kept(self, events: Any) -> None:
        """Forward keeps time and namespace, and needs no namespace header."""
        sent = Envelope(
            namespace="other", topic="/tasks/start", event=pack(task_pb2.TaskStart(container_id="f1", pid=4))
        )
        sent.timestamp.FromNanoseconds(1_600_000_000_123_456_789)
        async with subscribed(events) as subscriber:
            await events.Forward(pb.ForwardRequest(envelope=sent))
            assert await subscriber.seen() == [sent]

    async def test_events_come_in_order_to_every_subscriber(self, events: Any) -> None:
        """Two subscribers see the same three hundred events in the order of their publishing."""
        async with subscribed(events) as one, subscribed(events) as two:
            for n in range(300):
                await publish(events, f"/n/{n}", task_pb2.TaskOOM(container_id="c"))
            wanted = [f"/n/{n}" for n in range(300)]
            assert await one.topics() == wanted
            assert await two.topics() == wanted

    async def test_an_unknown_type_goes_through(self, events: Any) -> None:
        """The contents of an event are not interpreted."""
        odd = PbAny(type_url="example.com/Odd", value=b"\xff\x00odd")
        async with subscribed(events, 'topic=="/odd/thing"') as subscriber:
            await publish(events, "/odd/thing", odd)
            [envelope] = await subscriber.seen()
        assert envelope.event == odd

    @pytest.mark.parametrize(
        ("filters", "wanted"),
        [
            (['topic=="/tasks/exit"'], ["1"]),
            (["topic~=^/tasks/"], ["1", "2"]),
            (["namespace==blue"], ["2", "4"]),
            (["namespace!=blue,topic~=^/"], ["1", "3", "5"]),
            (['topic=="/tasks/exit"', 'topic=="/images/create"'], ["1", "4"]),
            (["topic~=^/tasks/,namespace==blue"], ["2"]),
            (["event.container_id==c1"], ["1"]),
            (["event.container_id"], ["1", "2"]),
            (["event.id==c3"], ["3"]),
            (["event.labels.team==a"], ["4"]),
            (['event.labels."odd.key"==x'], ["4"]),
            (["event.labels.team"], ["4"]),
            (["event.runtime.name==io.containerd.runc.v2"], ["3"]),
            (["event.pid==7"], []),
            (["event.nosuch"], []),
            (["event"], []),
            (["timestamp"], []),
            (["event.name~=^docker"], ["4"]),
        ],
    )
    async def test_filters_select(self, events: Any, filters: Sequence[str], wanted: Sequence[str]) -> None:
        """Fields are namespace, topic, and the strings and labels of containerd's event types; numbers, times and
        unknown types have no fields.
        """
        runtime = container_pb2.ContainerCreate.Runtime(name="io.containerd.runc.v2")
        cases: list[tuple[str, str, Message]] = [
            ("/tasks/exit", "red", exit_of("c1", pid=1000 + next(_numbers))),
            ("/tasks/oom", "blue", task_pb2.TaskOOM(container_id="c2")),
            ("/containers/create", "red", container_pb2.ContainerCreate(id="c3", image="i", runtime=runtime)),
            (
                "/images/create",
                "blue",
                image_pb2.ImageCreate(name="docker.io/library/x:1", labels={"team": "a", "odd.key": "x"}),
            ),
            ("/odd/thing", "red", PbAny(type_url="example.com/Odd", value=b"\xff")),
        ]
        async with subscribed(events, *filters) as subscriber:
            for topic, namespace, event in cases:
                await publish(events, topic, event, namespace)
            found = await subscriber.topics()
        assert found == [cases[int(number) - 1][0] for number in wanted]

    async def test_a_bad_filter_ends_the_call(self, events: Any) -> None:
        """A filter that cannot be parsed is reported as containerd reports it: without an error class of its own."""
        with pytest.raises(
            errors.Unknown, match=r"^subscription error: failed parsing subscription filters: .*parse error"
        ):
            await anext(events.Subscribe(pb.SubscribeRequest(filters=["topic==="])))

    @pytest.mark.parametrize(
        ("topic", "message"),
        [
            ("", 'envelope topic "": must not be empty: invalid argument'),
            ("tasks/exit", "envelope topic \"tasks/exit\": must start with '/': invalid argument"),
            ("/", 'envelope topic "/": must have at least one component: invalid argument'),
            (
                "/a//b",
                (
                    'envelope topic "/a//b": failed validation on component "": identifier must not be empty: invalid '
                    "argument"
                ),
            ),
            (
                "/a/b c",
                (
                    'envelope topic "/a/b c": failed validation on component "b c": identifier "b c" must match '
                    "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$: invalid argument"
                ),
            ),
            (
                "/" + "x" * 77,
                (
                    f'envelope topic "/{"x" * 77}": failed validation on component "{"x" * 77}": identifier '
                    f'"{"x" * 77}" '
                    "greater than maximum length (76 characters): invalid argument"
                ),
            ),
        ],
    )
    async def test_topics_are_checked(self, events: Any, topic: str, message: str) -> None:
        """Components are identifiers; the words are containerd's."""
        with pytest.raises(errors.InvalidArgument) as raised:
            await publish(events, topic, task_pb2.TaskOOM())
        assert str(raised.value) == message

    async def test_publishing_needs_a_namespace(self, events: Any) -> None:
        """Without the header, or with an invalid namespace, nothing is published."""
        request = pb.PublishRequest(topic="/tasks/oom", event=pack(task_pb2.TaskOOM()))
        with pytest.raises(errors.FailedPrecondition) as missing:
            await events.Publish(request)
        assert str(missing.value) == "failed publishing event: namespace is required: failed precondition"
        with pytest.raises(
            errors.InvalidArgument,
            match=r'^failed publishing event: namespace validation: identifier "a b" must match ',
        ):
            await events.Publish(request, headers={NAMESPACE: "a b"})

    async def test_a_forwarded_envelope_is_checked(self, events: Any) -> None:
        """Namespace, topic and time must be valid."""
        good = Envelope(namespace="n", topic="/t", event=pack(task_pb2.TaskOOM()))
        good.timestamp.GetCurrentTime()
        bad = {name: Envelope() for name in ("namespace", "topic", "timestamp")}
        for name, envelope in bad.items():
            envelope.CopyFrom(good)
            envelope.ClearField(name)
        bad["timestamp"].timestamp.FromSeconds(-62135596800)  # year 1, Go's zero
        with pytest.raises(errors.InvalidArgument) as raised:
            await events.Forward(pb.ForwardRequest(envelope=bad["namespace"]))
        assert (
            str(raised.value) == "event envelope has invalid namespace: identifier must not be empty: invalid argument"
        )
        with pytest.raises(errors.InvalidArgument) as raised:
            await events.Forward(pb.ForwardRequest(envelope=bad["topic"]))
        assert str(raised.value) == 'envelope topic "": must not be empty: invalid argument'
        with pytest.raises(errors.InvalidArgument) as raised:
            await events.Forward(pb.ForwardRequest(envelope=bad["timestamp"]))
        assert str(raised.value) == "timestamp must be set on forwarded event: invalid argument"

    async def test_a_subscriber_that_left_is_forgotten(self, events: Any) -> None:
        """When one of two subscribers is gone, publishing goes on as before."""
        async with subscribed(events) as stays:
            async with subscribed(events):
                await publish(events, "/n/1", task_pb2.TaskOOM())
            await publish(events, "/n/2", task_pb2.TaskOOM())
            assert await stays.topics() == ["/n/1", "/n/2"]


class NodeEventsSuite(EventsSuite):
    """Promises of a node beyond containerd's."""

    async def test_a_second_report_of_an_exit_is_dropped(self, events: Any) -> None:
        """Reports of an exit with the same namespace, container, exec and pid count once, whatever their sender and
        whatever time they give; anything else is another exit.
        """
        pid = 100_000 + next(_numbers)
        again = exit_of("c1", pid)
        again.exited_at.FromSeconds(1_700_000_009)
        async with subscribed(events, "topic~=^/x") as subscriber:
            await publish(events, "/x/1", exit_of("c1", pid))
            await publish(events, "/x/1again", again)
            await publish(events, "/x/2", exit_of("c1", pid), "other")
            await publish(events, "/x/3", exit_of("c2", pid))
            await publish(events, "/x/4", exit_of("c1", pid, "exec1"))
            await publish(events, "/x/5", exit_of("c1", pid + 1_000_000))
            assert await subscriber.topics() == ["/x/1", "/x/2", "/x/3", "/x/4", "/x/5"]

    async def test_a_second_report_of_a_deletion_is_dropped(self, events: Any) -> None:
        """Reports of a deletion with the same namespace, container and pid count once. After a start with that pid, it
        can be deleted again.
        """
        pid = 100_000 + next(_numbers)
        deleted = task_pb2.TaskDelete(container_id="c1", pid=pid)
        async with subscribed(events, "topic~=^/x") as subscriber:
            await publish(events, "/x/exit", exit_of("c1", pid))
            await publish(events, "/x/1", deleted)
            await publish(events, "/x/1again", deleted)
            await publish(events, "/x/2", deleted, "other")
            await publish(events, "/x/start", task_pb2.TaskStart(container_id="c1", pid=pid))
            await publish(events, "/x/3", deleted)
            assert await subscriber.topics() == ["/x/exit", "/x/1", "/x/2", "/x/start", "/x/3"]


def client(channel: Channel) -> Any:
    """A client of the service on ``channel``."""
    return channel.client(EVENTS)
