"""A pull that something makes slow gets a verdict that names it. ``make slow-pulls`` injects more, and compares with
pulls that nothing makes slow.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.slowpulls.causes import INJECTIONS, Injection
from tests.slowpulls.judging import with_cause
from tests.slowpulls.scene import Scene, scene

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.once, pytest.mark.timeout(180)]

SHORT = ("first-byte", "rate-limit", "disk", "collection", "queue")


@pytest_asyncio.fixture(scope="module")
async def place() -> AsyncIterator[Scene]:
    async with scene() as made:
        yield made


@pytest.mark.parametrize("injection", [each for each in INJECTIONS if each.name in SHORT], ids=lambda each: each.name)
async def test_the_verdict_names_the_cause(injection: Injection, place: Scene) -> None:
    """With its host, layer or holder, and with the seconds that the injection costs on any machine."""
    judged = await with_cause(place, injection)
    assert not judged.wrong, f"{judged.verdict.sentence} {judged.figures} {judged.verdict.causes}"
