"""services.kit.turns: the longest turn of a loop, in time of the processor."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from services.kit import turns
from tests.support import eventually_async


def compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def test_the_longest_turn_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing counts, also in two pieces of one turn; waiting does not. A file that is removed
    begins anew.
    """
    monkeypatch.setenv(turns.VARIABLE, str(tmp_path))
    turns.watch("me")

    async def told(least: float) -> bool:
        return turns.longest(tmp_path).get("me", 0.0) >= least

    for _ in range(2):
        asyncio.get_running_loop().call_soon(compute, 0.02)
    await eventually_async(lambda: told(0.04), "the turn is not told")
    (tmp_path / "me").unlink()
    time.sleep(0.5)  # in which no processor is used
    asyncio.get_running_loop().call_soon(compute, 0.01)
    await eventually_async(lambda: told(0.01), "the turn after that is not told")
    assert turns.longest(tmp_path)["me"] < 0.5


async def test_nothing_is_looked_at_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(turns.VARIABLE, raising=False)
    turns.watch("me")
    assert not [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
