"""The suite of the store of traces. It runs on the local store, on the one in memory, behind the queue, and on the
process.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest

from services.kit import errors
from services.traces.store import Event, Kind, Link, Query, Span, Status, Store

SECOND = 10**9
NOW = 1_800_000_000 * SECOND
ROOT = {
    "splitd.operation": "pull",
    "splitd.namespace": "default",
    "container.image.name": "docker.io/library/busybox:1",
    "splitd.outcome": "ok",
}
_numbers = itertools.count(1)


def new_id(digits: int) -> str:
    """Another id each time; also in its first digits."""
    return f"{next(_numbers) * 0x9E3779B97F4A7C15 & (1 << 64) - 1:016x}".ljust(digits, "5")[:digits]


def span(trace: str = "", **what: Any) -> Span:
    """A span of one second; a root, unless told otherwise."""
    made = Span(trace or new_id(32), new_id(16), "", "images.pull", "splitd-images", NOW, NOW + SECOND)
    return dataclasses.replace(made, **what)


class TracesSuite:
    """A subclass has a fixture ``store``, which is empty."""

    async def test_spans_come_back_as_they_were(self, store: Store) -> None:
        """With all that they say, in the order of their beginnings, whenever they came."""
        root = span(attributes=ROOT, kind=Kind.SERVER, status=Status.OK)
        child = span(
            root.trace,
            parent=root.id,
            name="registry.fetch",
            service="splitd-other",
            start=NOW + 5,
            kind=Kind.CLIENT,
            status=Status.ERROR,
            message="it broke",
            events=[Event(NOW + 6, "retry", {"count": 2})],
            links=[Link(new_id(32), new_id(16), {"why": "x"})],
        )
        await store.add([child])
        await store.add([root])
        found = await store.trace(root.trace)
        assert (found.id, found.spans) == (root.trace, [root, child])

    async def test_attributes_of_all_kinds(self, store: Store) -> None:
        """None, bytes, maps and mixed lists are values too; a truth is no number."""
        values = {
            "text": "ä \0 \U0001f600",
            "yes": True,
            "number": -(1 << 63),
            "real": 0.1,
            "infinite": math.inf,
            "nothing": None,
            "bytes": b"\xff\0",
            "list": [1, "a", None, True, [2.5, []], {"b": b"c"}],
            "map": {"a": {"b": [1]}, "": None, "empty": {}},
        }
        sent = span(attributes=values)
        await store.add([sent])
        [found] = (await store.trace(sent.trace)).spans
        assert found.attributes == values
        assert [type(value) for value in found.attributes.values()] == [type(value) for value in values.values()]
        assert [each.id for each in await store.traces(Query())] == [sent.trace]

    async def test_whatever_a_collector_takes(self, store: Store) -> None:
        """Any times, zero ids, unknown kinds, a span that is its own parent, an integer that is too large."""
        zero = "0" * 32
        odd = [
            span(zero, id="0" * 16, start=0, end=0),
            span(zero, id="0" * 16, start=(1 << 64) - 1, end=0, name="last", attributes={"large": 1 << 64}),
            span(zero, id="1" * 16, parent="1" * 16, kind=77, start=7, end=3),
        ]
        await store.add(odd)
        first, own, last = (await store.trace(zero)).spans
        assert (first.start, first.end, first.seconds) == (0, 0, 0)
        assert (own.parent, own.kind, own.start, own.end, own.seconds) == (own.id, Kind.UNSPECIFIED, 7, 3, 0)
        assert (last.name, last.start, last.attributes) == ("last", (1 << 64) - 1, {"large": str(1 << 64)})
        [summary] = await store.traces(Query())
        assert (summary.spans, summary.start) == (3, 0)

    async def test_a_span_that_comes_twice_is_stored_once(self, store: Store) -> None:
        """As one that was open at a fork. The first one counts."""
        one = span(end=NOW + SECOND, status=Status.ERROR)
        await store.add([one, dataclasses.replace(one, end=NOW + 9 * SECOND)])
        await store.add([dataclasses.replace(one, end=NOW + 7 * SECOND), span(one.trace, parent=one.id, start=NOW + 1)])
        assert [each.end for each in (await store.trace(one.trace)).spans] == [NOW + SECOND] * 2
        [summary] = await store.traces(Query())
        assert (summary.spans, summary.errors) == (2, 1)

    async def test_a_list_says_what_the_root_says(self, store: Store) -> None:
        """Before the root has come, what the first span says, and the times of all spans."""
        root = span(name="Transfer", attributes={**ROOT, "splitd.bytes": 7, "list": [1, "x"]})
        late = span(root.trace, parent=root.id, name="late", start=NOW + 3, end=NOW + 3 * SECOND, status=Status.ERROR)
        early = span(root.trace, parent=root.id, name="early", start=NOW + 2, attributes={"a": True})
        await store.add([late])
        await store.add([early])
        [summary] = await store.traces(Query())
        assert (summary.name, summary.operation, summary.attributes) == ("early", "", {"a": True})
        assert (summary.start, summary.end) == (NOW + 2, NOW + 3 * SECOND)
        assert await store.traces(Query(longer=2)) == [summary]
        await store.add([root])
        [summary] = await store.traces(Query())
        assert (summary.id, summary.name, summary.operation) == (root.trace, "Transfer", "pull")
        assert (summary.namespace, summary.image, summary.outcome) == ("default", "docker.io/library/busybox:1", "ok")
        assert (summary.start, summary.end, summary.seconds) == (NOW, NOW + SECOND, 1.0)
        assert (summary.spans, summary.errors, summary.failed) == (3, 1, False)
        assert summary.attributes == {"splitd.bytes": 7, "list": [1, "x"]}
        await store.add([span(root.trace, parent=root.id, name="earlier", start=5)])
        [summary] = await store.traces(Query())
        assert (summary.name, summary.start, summary.end) == ("Transfer", NOW, NOW + SECOND)
        assert await store.traces(Query(longer=1)) == [summary]
        assert await store.traces(Query(longer=1.5)) == []

    async def test_a_list_without_a_root_says_what_the_best_spans_say(self, store: Store) -> None:
        """A gateway that is killed sends no root. Whichever span comes first: in one piece, or each in its own."""
        about = {"splitd.namespace": "default", "container.image.name": "box:1"}
        for together in (True, False):
            for turned in (True, False):
                trace, above = new_id(32), new_id(16)
                call = span(trace, parent=above, name="Leases/Create", start=NOW, status=Status.ERROR)
                pull = span(trace, parent=above, name="images.pull", start=NOW + 5, attributes={**about, "a": 1})
                late = {"splitd.outcome": "cancelled", "container.image.name": "other:2"}
                other = span(trace, parent=pull.id, name="other", start=NOW + 9, attributes=late)
                sent = [other, pull, call] if turned else [call, pull, other]
                for some in [sent] if together else [[each] for each in sent]:
                    await store.add(some)
                [summary] = await store.traces(Query(operation="pull", image="box:1", namespace="default"))
                assert (summary.id, summary.name, summary.outcome) == (trace, "images.pull", "cancelled")
                assert (summary.attributes, summary.start, summary.end) == ({"a": 1}, NOW, NOW + SECOND)
                await store.add([span(trace, id=above, name="pull", attributes=ROOT)])
                [summary] = await store.traces(Query())
                assert (summary.name, summary.image, summary.outcome) == ("pull", ROOT["container.image.name"], "ok")
                await store.delete(trace)

    async def test_a_transfer_without_a_root_failed_if_its_span_did(self, store: Store) -> None:
        """It is the best that is known."""
        pull = span(parent=new_id(16), name="images.push", status=Status.ERROR)
        await store.add([pull])
        [summary] = await store.traces(Query())
        assert (summary.operation, summary.outcome, summary.failed) == ("push", "failed", True)

    async def test_a_list_is_filtered(self, store: Store) -> None:
        """The newest come first, and no more than asked for."""
        made = [
            span(name="a", start=NOW + 1, end=NOW + 1 + SECOND // 2, attributes=ROOT),
            span(name="b", start=NOW + 2, attributes={**ROOT, "splitd.outcome": "failed"}),
            span(name="c", start=NOW + 3, attributes={**ROOT, "splitd.namespace": "k8s.io", "splitd.operation": "run"}),
            span(name="d", start=NOW + 4, end=NOW + 90 * SECOND, attributes={"container.image.name": "quay.io/100%"}),
            span(name="e", start=NOW + 5, status=Status.ERROR),
        ]
        await store.add(made)

        async def names(query: Query) -> str:
            return "".join(each.name for each in await store.traces(query))

        assert await names(Query()) == "edcba"
        assert await names(Query(limit=2)) == "ed"
        assert await names(Query(since=NOW + 3)) == "edc"
        assert await names(Query(operation="pull")) == "ba"
        assert await names(Query(namespace="k8s.io")) == "c"
        assert await names(Query(image="busybox")) == "cba"
        assert await names(Query(image="100%")) == "d"
        assert await names(Query(image="BUSYBOX")) == ""
        assert await names(Query(failed=True)) == "eb"
        assert await names(Query(longer=0.75)) == "edcb"
        assert await names(Query(longer=60, image="quay")) == "d"
        assert await names(Query(longer=math.inf)) == ""

    async def test_single_calls_and_collections_are_left_out_on_demand(self, store: Store) -> None:
        """Not those that failed."""
        failed = {"splitd.outcome": "failed"}
        for number, (name, operation, more) in enumerate(
            [
                ("a", "Version.Version", {}),
                ("b", "collect", {}),
                ("c", "pull", {}),
                ("d", "Images.Get", failed),
                ("e", "", {}),
            ]
        ):
            said = {"splitd.operation": operation} if operation else {}
            await store.add([span(name=name, start=NOW + number, attributes={**said, **more})])
        assert [each.name for each in await store.traces(Query())] == ["e", "d", "c", "b", "a"]
        assert [each.name for each in await store.traces(Query(operations=True))] == ["e", "d", "c"]

    async def test_a_trace_is_found_by_the_beginning_of_its_id(self, store: Store) -> None:
        """If it is the only one with it."""
        await store.add([span("abc0" + "1" * 28), span("abd0" + "1" * 28)])
        assert (await store.trace("abc")).id == "abc0" + "1" * 28
        assert (await store.trace("ABD0")).id == "abd0" + "1" * 28
        with pytest.raises(errors.InvalidArgument, match="trace ab: several begin so, such as abc0"):
            await store.trace("ab")
        with pytest.raises(errors.InvalidArgument, match="the id of a trace is empty"):
            await store.trace("")
        for absent in ("abcd", "xyz", "abc0" + "1" * 29, "%"):
            with pytest.raises(errors.NotFound, match=f"trace {absent}: not found"):
                await store.trace(absent)

    async def test_a_trace_can_be_deleted(self, store: Store) -> None:
        """The others stay."""
        one, other = span(), span()
        await store.add([one, other])
        await store.delete(one.trace)
        with pytest.raises(errors.NotFound):
            await store.trace(one.trace)
        with pytest.raises(errors.NotFound, match=f"trace {one.trace}: not found"):
            await store.delete(one.trace)
        assert [each.id for each in await store.traces(Query())] == [other.trace]
        await store.add([one])
        assert (await store.trace(one.trace)).spans == [one]

    async def test_it_says_how_much_it_holds(self, store: Store) -> None:
        """In traces and spans."""
        one = span()
        await store.add([one, span(one.trace, parent=one.id), span()])
        figures = await store.figures()
        assert (figures.traces, figures.spans, figures.dropped) == (2, 3, 0)
