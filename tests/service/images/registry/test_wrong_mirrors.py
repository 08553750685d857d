"""A mirror that has wrong bytes for a blob: however it serves them, the blob comes from a host that has it."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from services.images.registry.client import Registry
from services.images.registry.hosts import Hosts
from tests.fake_registry import FakeRegistry, Fault, cut, encoded, endless, then
from tests.fake_registry import other as instead
from tests.service.images.registry.conftest import HASTY, QUICK
from tests.service.images.registry.pulls import LAYER, certs
from tests.service.images.registry.test_ranges import LARGE, IngestingNode, layer_fetched
from tests.support import within

pytestmark = pytest.mark.once

ALWAYS = 1 << 30


def junk(size: int) -> bytes:
    return os.urandom(size)


WRONG: dict[str, Callable[[FakeRegistry, bytes], Fault]] = {
    "as many": lambda _, data: instead(junk(len(data))),
    "more": lambda _, data: instead(junk(len(data) + 10), chunked=True),
    "more, with the right ones before": lambda _, data: instead(data + b"more", chunked=True),
    "fewer": lambda _, data: instead(junk(len(data) // 2), chunked=True),
    "without an end": lambda _, __: endless(),
    "half of them, and then none": lambda _, data: then(instead(junk(len(data))), cut(len(data) // 2)),
    "compressed": lambda registry, data: encoded(registry, "gzip", lambda _: gzip.compress(junk(len(data)), 1)),
    "compressed, and more": lambda registry, data: encoded(
        registry, "gzip", lambda _: gzip.compress(bytes(len(data) + 10), 1)
    ),
}


@pytest.mark.parametrize(
    ("what", "data"),
    [*((what, LAYER) for what in WRONG), ("more", LARGE), ("half of them, and then none", LARGE)],
    ids=[*WRONG, "in parts: more", "in parts: half of them, and then none"],
)
async def test_a_mirror_with_wrong_bytes(
    fake: FakeRegistry, other: FakeRegistry, tmp_path: Path, what: str, data: bytes
) -> None:
    """In one piece and in parts: the wrong bytes are dropped, and the blob is right."""
    for each in (fake, other):
        each.add_blob("box", data)
    fake.inject("blob", WRONG[what](fake, data), times=ALWAYS)
    hosts = Hosts((certs(tmp_path, "images.test", f'server = "{other.url}"\n[host."{fake.url}"]\n'),))
    node = IngestingNode(tmp_path / "blob", data)
    async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
        with within(20):
            await layer_fetched(registry, "images.test/box:1", node)
    assert node.landed == data
