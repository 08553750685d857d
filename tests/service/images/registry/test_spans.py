"""The trace of a slow pull has name resolution, connection, TLS, first byte, bytes and attempts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.images.registry import Hosts, Registry
from services.kit import tracing
from tests.fake_registry import Authority, FakeRegistry, cut
from tests.service.images.registry.conftest import HASTY, QUICK
from tests.service.images.registry.pulls import LAYER, certs, described, fetched, small_image

pytestmark = pytest.mark.once


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    found = InMemorySpanExporter()
    tracing.setup("images", exporter=found)
    yield found
    tracing.reset()


async def test_the_spans_of_a_pull(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    """A resolve and a fetch over TLS, whose connection is lost once."""
    authority = Authority(tmp_path / "ca")
    async with FakeRegistry(tls=authority.server()) as fake:
        fake.add(small_image(), "box:1")
        fake.add_blob("box", LAYER)
        fake.inject("blob", cut(300_000))
        server = fake.url.replace("127.0.0.1", "localhost")
        hosts = Hosts(
            (certs(tmp_path / "certs.d", "images.test", f'server = "{server}"\nca = "{authority.certificate}"\n'),)
        )
        async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
            client = registry.client()
            await client.resolve("images.test/box:1")
            assert (await fetched(client, "images.test/box:1", described(LAYER)))[0] == LAYER
    spans = exporter.get_finished_spans()
    by_id = {each.context.span_id: each for each in spans}

    def named(name: str) -> list[Any]:
        return [each for each in spans if each.name == name]

    (resolved,), (fetch,) = named("registry.resolve"), named("registry.fetch")
    host = server.removeprefix("https://")
    assert (resolved.attributes["host"], resolved.attributes["attempts"], resolved.attributes["reference"]) == (
        host,
        1,
        "images.test/box:1",
    )
    assert (fetch.attributes["host"], fetch.attributes["attempts"], fetch.attributes["bytes"]) == (
        f"{host}, {host}",
        2,
        len(LAYER),
    )
    first, second, third = named("registry.request")
    assert [each.parent.span_id for each in (first, second, third)] == [
        resolved.context.span_id,
        fetch.context.span_id,
        fetch.context.span_id,
    ]
    assert (
        first.attributes["http.request.method"],
        first.attributes["server.address"],
        first.attributes["http.response.status_code"],
    ) == ("HEAD", host, 200)
    for phase in ("dns", "connect", "tls", "first_byte"):
        assert first.attributes[f"registry.{phase}_ms"] > 0, phase
    assert second.attributes["registry.connection_reused"]
    assert "registry.connect_ms" not in second.attributes
    for phase in ("dns", "connect", "tls"):
        spans_of = named(f"registry.{phase}")
        assert spans_of, phase
        assert all(by_id[each.parent.span_id].name == "registry.request" for each in spans_of)


async def test_the_span_of_a_failure(exporter: InMemorySpanExporter) -> None:
    """The span has the reason."""
    async with Registry(timeouts=QUICK, retry=HASTY) as registry:
        with pytest.raises(Exception, match="Connection refused"):
            await registry.client().resolve("127.0.0.1:9/box:1")
    request = next(each for each in exporter.get_finished_spans() if each.name == "registry.request")
    assert (request.attributes or {})["error.type"] == "no connection: Connection refused"
