"""The life of an intent: the end of an operation for each outcome of its raw call."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gateway.intents import Intents
from gateway.store import Fate, Intent, Outcome, Records
from gateway.upstream import Upstream
from services.kit import errors
from services.kit.rpc import Call
from tests.support import eventually_async

DONE, LATER = Outcome(digest="sha256:1", size=1), Outcome(digest="sha256:1", size=2)
DIED, SILENT = errors.Disconnected("service s went away"), errors.DeadlineExceeded("s")
LOCKED, REFUSED, AWAY = errors.Unavailable("ref locked"), errors.InvalidArgument("no"), errors.Unavailable("away")

Answer = Outcome | None | errors.NodeError


def answered(answers: list[Answer]) -> Outcome | None:
    answer = answers.pop(0)
    if isinstance(answer, errors.NodeError):
        raise answer
    return answer


class Backend:
    """A backend that is there, unless ``up`` says otherwise, and the raw call to it: the answers to the call, one after
    another, and to the question about its outcome.
    """

    name = "s"

    def __init__(self, made: list[Answer], asked: list[Answer]) -> None:
        self.made = made
        self.asked = asked
        self.up = True

    async def ready(self) -> None:
        if not self.up:
            raise AWAY

    async def make(self) -> Outcome:
        outcome = answered(self.made)
        assert outcome is not None
        return outcome

    async def happened(self) -> Outcome | None:
        return answered(self.asked)


class Told:
    """A fake of metadata that records ends of intents; it answers with the error ``taken``, if there is one."""

    def __init__(self, taken: errors.NodeError | None = None) -> None:
        self.ends: list[tuple[str, Outcome | None]] = []
        self._taken = taken

    async def finish(self, call: Call, intent: Intent, outcome: Outcome) -> None:
        self.ends.append((intent.id, outcome))
        if self._taken:
            raise self._taken

    async def cancel(self, call: Call, intent: Intent) -> None:
        self.ends.append((intent.id, None))


async def carried_out(backend: Backend, told: Told) -> Outcome:
    intents = Intents(cast("Records", told), pause=0.01)
    return await intents.carry_out(Intent(id="i"), backend, cast("Upstream", backend), Call("m", {}))


@pytest.mark.parametrize(
    ("made", "asked", "outcome"),
    [([DONE], [], DONE), ([DIED], [LATER], LATER), ([SILENT], [LATER], LATER), ([DIED, DONE], [None], DONE)],
    ids=["at once", "died after it", "silent after it", "died before it"],
)
async def test_operations_that_happened_become_records(
    made: list[Answer], asked: list[Answer], outcome: Outcome
) -> None:
    """The raw service may say so itself or be asked afterwards; it is asked only if it did not say."""
    backend, told = Backend(made, asked), Told()
    assert await carried_out(backend, told) == outcome
    assert told.ends == [("i", outcome)]
    assert not made
    assert not asked


@pytest.mark.parametrize(
    ("made", "asked", "error"),
    [([REFUSED], [], REFUSED), ([LOCKED], [], LOCKED), ([DIED, REFUSED], [None], REFUSED)],
    ids=["refused", "busy", "refused when made again"],
)
async def test_operations_that_did_not_happen_are_cancelled(
    made: list[Answer], asked: list[Answer], error: errors.NodeError
) -> None:
    """The raw service's error is the client's answer."""
    backend, told = Backend(made, asked), Told()
    with pytest.raises(type(error)) as caught:
        await carried_out(backend, told)
    assert caught.value is error
    assert told.ends == [("i", None)]


@pytest.mark.parametrize(("happened", "end"), [(LATER, LATER), (None, None)], ids=["it did", "it did not"])
async def test_a_backend_that_stays_away_is_asked_without_the_caller(happened: Answer, end: Outcome | None) -> None:
    """The caller gets the error that it is away; the intent ends by what is learnt later, with all that a record
    needs.
    """
    backend, told = Backend([DIED], [happened]), Told()

    async def died() -> Outcome:
        backend.up = False
        raise DIED

    backend.make = died  # type: ignore[method-assign]
    with pytest.raises(errors.Unavailable, match="^away"):
        await carried_out(backend, told)
    assert told.ends == []
    backend.up = True
    await eventually_async(lambda: asyncio.sleep(0, told.ends == [("i", end)]), "the intent does not end")


async def test_a_backend_that_is_away_was_asked_nothing() -> None:
    """So nothing happened, and nobody has to ask: a client that tries again and again leaves no intents behind."""
    backend, told = Backend([], []), Told()
    backend.up = False
    with pytest.raises(errors.Unavailable, match="^away"):
        await carried_out(backend, told)
    assert told.ends == [("i", None)]


async def test_an_end_that_metadata_does_not_take_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """metadata's own error ends it: the raw service is not asked again and again."""
    backend, told = Backend([DIED, SILENT], [None, SILENT, LATER]), Told(errors.NotFound("open intent i"))
    with pytest.raises(errors.DeadlineExceeded):
        await carried_out(backend, told)
    await eventually_async(
        lambda: asyncio.sleep(0, "the end of an intent on s was not taken" in caplog.text), "nothing is said"
    )
    assert told.ends == [("i", LATER)]


async def test_the_client_gets_metadatas_answer_to_the_end_of_an_intent() -> None:
    """For example ALREADY_EXISTS, for a snapshot that the backend had already."""
    backend, told = Backend([DONE], []), Told(errors.AlreadyExists("snapshot k"))
    with pytest.raises(errors.AlreadyExists):
        await carried_out(backend, told)
    assert told.ends == [("i", DONE)]


@pytest.mark.parametrize(
    ("error", "there", "fate"),
    [
        (DIED, True, Fate.UNKNOWN),
        (SILENT, True, Fate.UNKNOWN),
        (errors.Cancelled("s"), True, Fate.UNKNOWN),
        (AWAY, False, Fate.UNKNOWN),
        (LOCKED, True, Fate.NOT_DONE),
        (REFUSED, True, Fate.NOT_DONE),
        (REFUSED, False, Fate.NOT_DONE),
        (errors.Internal("s"), True, Fate.NOT_DONE),
    ],
)
def test_fates(error: errors.NodeError, there: bool, fate: Fate) -> None:
    """Only a missing answer leaves it open; an error of the raw service does not."""
    assert Fate.after(error, there=there) is fate
