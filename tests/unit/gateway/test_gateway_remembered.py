"""gateway.remembered: what is kept, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from google.protobuf import descriptor_pool

import gateway.routes  # noqa: F401 - knows the services
from gateway.relay import READS
from gateway.remembered import TABLES, Remembered
from services.kit.editions import Edition
from services.metadata.__main__ import _REMEMBERED


class Upstream:
    """A process, which is one of the node's own or not."""

    def __init__(self, *, ours: bool) -> None:
        self.channel = SimpleNamespace(ours=ours)


OURS: Any = Upstream(ours=True)
FOREIGN: Any = Upstream(ours=False)


@dataclass
class Table:
    """A table with an edition, and the way to its owner."""

    edition: bytes = b"1"
    of_namespace: dict[str, bytes] = field(default_factory=dict)
    """The editions of namespaces that have another."""
    ready: bool = True
    looks: int = 0
    changed: list[Any] = field(default_factory=list)

    def now(self, namespace: str | None = None) -> bytes:
        return self.edition if namespace is None else self.of_namespace.get(namespace, self.edition)

    def look(self) -> None:
        self.looks += 1

    @property
    def home(self) -> Table:
        return self

    def is_ready(self) -> bool:
        return self.ready


def remembering(table: Table, **bounds: Any) -> Remembered:
    return Remembered(cast("Edition", table), cast("Any", table), **bounds)


def learn(found: Remembered, request: bytes, answer: bytes, upstream: Any = OURS, namespace: str = "n") -> None:
    note = found.asked(upstream, "/a.B/Get", namespace, request)
    if note is not None:
        note(answer)


def test_metadata_has_editions_of_all_these_tables() -> None:
    """And of no others."""
    assert set(TABLES.values()) == set(_REMEMBERED)


def test_only_unary_methods_that_change_nothing_are_remembered() -> None:
    """Metadata's own question about a blob changes nothing either."""
    for method in TABLES:
        _, service, name = method.split("/")
        assert name in READS | {"ResolveBlob"}
        found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        assert not (found.client_streaming or found.server_streaming)


def test_an_answer_is_for_its_question_its_namespace_and_its_upstream() -> None:
    """And for its edition, while the owner is there."""
    table = Table()
    found = remembering(table)
    learn(found, b"q", b"a")
    assert found.find(OURS, "/a.B/Get", "n", b"q") == b"a"
    assert found.find(OURS, "/a.B/List", "n", b"q") is None
    assert found.find(OURS, "/a.B/Get", "m", b"q") is None
    assert found.find(OURS, "/a.B/Get", "n", b"r") is None
    assert found.find(cast("Any", Upstream(ours=True)), "/a.B/Get", "n", b"q") is None
    table.ready = False
    assert found.find(OURS, "/a.B/Get", "n", b"q") is None
    table.ready = True
    for edition in b"", b"2":
        table.edition = edition
        assert found.find(OURS, "/a.B/Get", "n", b"q") is None
    learn(found, b"other", b"b")
    table.edition = b"1"
    assert found.find(OURS, "/a.B/Get", "n", b"q") is None


def test_a_change_in_one_namespace_concerns_no_other() -> None:
    """Unless the answers depend on the whole table."""
    table = Table()
    found, whole = remembering(table), remembering(table, whole=True)
    for each in found, whole:
        learn(each, b"q", b"a")
        learn(each, b"q", b"b", namespace="m")
    table.of_namespace["m"] = b"2"
    assert [found.find(OURS, "/a.B/Get", name, b"q") for name in ("n", "m")] == [b"a", None]
    assert [whole.find(OURS, "/a.B/Get", name, b"q") for name in ("n", "m")] == [b"a", b"b"]
    learn(found, b"q", b"c", namespace="m")
    assert [found.find(OURS, "/a.B/Get", name, b"q") for name in ("n", "m")] == [b"a", b"c"]
    table.edition = b"3"
    assert [whole.find(OURS, "/a.B/Get", name, b"q") for name in ("n", "m")] == [None, None]


def test_an_answer_that_comes_after_a_change_is_not_remembered() -> None:
    """Nor one that nobody may remember: of another's process, or while the table changes."""
    table = Table()
    found = remembering(table)
    late = found.asked(OURS, "/a.B/Get", "n", b"q")
    assert late is not None
    table.edition = b"2"
    late(b"a")
    assert found.find(OURS, "/a.B/Get", "n", b"q") is None
    assert found.asked(FOREIGN, "/a.B/Get", "n", b"q") is None
    assert found.asked(OURS, "/a.B/Get", "n", b"q" * 5000) is None
    table.edition = b""
    assert found.asked(OURS, "/a.B/Get", "n", b"q") is None


def test_what_is_remembered_is_bounded() -> None:
    """The answers that were given last stay; the largest are not remembered at all."""
    found = remembering(Table(), limit=3000, largest=1000)
    for request in b"a", b"b", b"c":
        learn(found, request, request * 500)
    assert found.find(OURS, "/a.B/Get", "n", b"a") == b"a" * 500
    learn(found, b"d", b"d" * 500)
    learn(found, b"e", b"e" * 1001)
    kept = [request for request in (b"a", b"b", b"c", b"d", b"e") if found.find(OURS, "/a.B/Get", "n", request)]
    assert kept == [b"a", b"c", b"d"]
    for _ in range(100):
        learn(found, b"a", b"a" * 500)
    assert found._size == sum(len(answer) + 401 for _, answer in found._answers.values())


def test_whoever_remembers_looks_at_each_new_owner() -> None:
    """The hop tells when it has connected."""
    table = Table()
    remembering(table)
    before = table.looks
    for told in table.changed:
        told()
    assert table.looks == before + 1
