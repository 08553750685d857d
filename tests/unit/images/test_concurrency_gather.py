"""Concurrent work: the first failure is the result of the whole, and nothing of it stays in memory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from services.images.concurrency.gather import for_each, run_all
from services.kit import errors
from services.kit.rpc import Answering, Call


class Document:
    """A large document that a failure is about."""


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """The garbage collector is off."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def fail(documents: list[weakref.ref[Document]]) -> None:
    document = Document()
    documents.append(weakref.ref(document))
    await asyncio.sleep(0)
    raise errors.NotFound("x")


async def test_a_failure_keeps_nothing_alive() -> None:
    """Neither the failure of a part, however deep it is, nor that of the whole call: a client's document has megabytes,
    and the garbage collector may run only minutes later.
    """
    documents: list[weakref.ref[Document]] = []

    async def both() -> None:
        await run_all([fail(documents), fail(documents)])

    server = SimpleNamespace(running={}, draining=False, entrance=None)
    with Answering(server, Call("/x/Y", {}, None), long=False) as answering:  # type: ignore[arg-type]
        await run_all([both(), both()])
    assert isinstance(answering.failure, errors.NotFound)
    await asyncio.sleep(0)
    assert len(documents) == 4
    assert [each() for each in documents] == [None] * 4


async def test_the_first_failure_ends_the_others() -> None:
    """The others are cancelled, and the first failure is raised."""
    ended = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cancelled")

    with pytest.raises(errors.NotFound):
        await run_all([wait(), fail([]), wait()])
    assert ended == ["cancelled"] * 2
    await run_all([])


async def test_so_many_at_once() -> None:
    """Each piece of work has its turn; after a failure none begins."""
    running, most, done = 0, 0, list[int]()

    async def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        if number == 30:
            raise errors.NotFound("x")
        done.append(number)

    await for_each(range(25), work, 4)
    assert (most, sorted(done)) == (4, list(range(25)))
    await for_each([], work, 4)
    with pytest.raises(errors.NotFound):
        await for_each(range(30, 90), work, 4)
    assert len(done) < 25 + 2 * 4
