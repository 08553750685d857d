"""How candidates come and go, and what of them outlasts the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway import standing
from gateway.candidates import Terms
from gateway.config import Config, candidates
from gateway.replacing import RESTORED, UNNAMED, Replacing
from gateway.routes import Routes
from gateway.store import Objects
from services.kit import errors, loops, settings
from tests.support import eventually_async


class Records:
    """metadata, as far as it knows of candidates' backends."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self.holds: dict[str, Objects] = {}
        self.away = False

    def lead_to(self, backends: Sequence[str]) -> None:
        self.known = list(backends)

    async def candidates(self, backends: Sequence[str]) -> None:
        if self.away:
            raise errors.Unavailable("service metadata has been unreachable for 5 s")
        self.known = list(backends)

    async def objects(self, backend: str, limit: int = 0) -> Objects:
        if self.away:
            raise errors.Unavailable("service metadata has been unreachable for 5 s")
        return self.holds.get(backend, Objects())

    async def forget(self, backend: str) -> Objects:
        assert backend not in self.known
        return self.holds.pop(backend, Objects())


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture(autouse=True)
def directory(place: Path) -> None:
    (place / "gateway").mkdir()


def replacing(place: Path, records: Records, configured: Sequence[Terms] = (), **more: Any) -> Replacing:
    """As a gateway has it that has just started."""
    return Replacing(Routes(place, Config(), {}), records, place, configured, **more)


def terms(**more: Any) -> Terms:
    return Terms(**{"route": "content", "name": "mine", "address": "/x.sock", **more})


def stands(of: Replacing, route: str = "content") -> list[tuple[str, str]]:
    """Name and reason of draining of each candidate, as the hop has them."""
    return [(each.terms.name, each.drained) for each in of._routes[route].candidates]


async def test_a_candidate_outlasts_the_gateway(place: Path, records: Records) -> None:
    """Its terms, its end, and when it began; metadata hears of it before anything else."""
    first = replacing(place, records)
    wanted = terms(namespaces=("a", "b"), share=12.5, back_at=5.0, deadline=2.0, capabilities=("rebase",))
    found, moved = await first.replace(wanted)
    assert (moved, records.known) == ("", ["content@mine"])
    again = replacing(place, records)
    assert records.known == ["content@mine"]
    (candidate,) = again.on("content")
    assert (candidate.terms, candidate.since, candidate.drained) == (wanted, found.since, "")
    await again.restore("content")
    assert stands(replacing(place, records)) == [("mine", RESTORED)]


async def test_nothing_stands_that_metadata_has_not_heard_of(place: Path, records: Records) -> None:
    """Nor that could not be stored: the operator is told, and nothing has changed."""
    of = replacing(place, records)
    records.away = True
    with pytest.raises(errors.Unavailable):
        await of.replace(terms())
    assert (stands(of), records.known, standing.kept(place)) == ([], [], [])
    records.away = False
    (place / "gateway" / "routes.json.new").mkdir()
    with pytest.raises(OSError, match="routes.json.new"):
        await of.replace(terms())
    assert (stands(of), records.known) == ([], [])


async def test_it_takes_no_more_at_once_though_that_cannot_be_stored(
    place: Path, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator is told; it is stored when there is room."""
    of, room, keep = replacing(place, records, again=0.01), asyncio.Event(), standing.keep
    await of.replace(terms())
    records.holds["content@mine"] = Objects(blobs=1)

    def full(*arguments: Any) -> None:
        if not room.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        keep(*arguments)

    monkeypatch.setattr(standing, "keep", full)
    with pytest.raises(OSError, match="No space"):
        await of.restore("content")
    assert stands(of) == [("mine", RESTORED)]
    assert [each.drained for each in standing.kept(place)] == [""]
    async with loops.running("the ends of candidates", of.follow):
        room.set()

        async def stored() -> bool:
            return [each.drained for each in standing.kept(place)] == [RESTORED]

        await eventually_async(stored, "it is not stored")


async def test_one_whose_time_passed_while_the_gateway_was_away_takes_nothing(place: Path, records: Records) -> None:
    """Not even for a moment."""
    await replacing(place, records, now=lambda: 10.0).replace(terms(until=20.0))
    assert stands(replacing(place, records, now=lambda: 19.0)) == [("mine", "")]
    assert stands(replacing(place, records, now=lambda: 20.0)) == [("mine", "its time is over")]
    with pytest.raises(errors.InvalidArgument, match="until: that moment is over"):
        await replacing(place, records, now=lambda: 30.0).replace(terms(until=20.0))


async def test_it_goes_when_metadata_says_that_it_has_nothing(place: Path, records: Records) -> None:
    """Not while an operation or something uncollected is there, nor while nobody says so."""
    of = replacing(place, records, look=0.001)
    await of.replace(terms())
    await of.restore("content")
    looked = records.objects

    async def asked(holds: Objects, *, away: bool = False) -> None:
        seen, records.holds["content@mine"], records.away = asyncio.Event(), holds, away

        async def noted(backend: str, limit: int = 0) -> Objects:
            seen.set()
            return await looked(backend, limit)

        records.objects = noted  # type: ignore[method-assign]
        for _ in range(2):
            seen.clear()
            await asyncio.wait_for(seen.wait(), 10)

    records.away = True
    async with loops.running("the ends of candidates", of.follow):
        for holds in (Objects(blobs=1), Objects(intents=1), Objects(uncollected=1)):
            await asked(holds)
            assert stands(of) == [("mine", RESTORED)]
        await asked(Objects(), away=True)
        assert stands(of) == [("mine", RESTORED)]
        records.away = False
        await eventually_async(lambda: asyncio.sleep(0, not of.candidates), "it does not go")
    assert (records.known, standing.kept(place)) == ([], [])


async def test_metrics_tell_of_candidates(place: Path, records: Records) -> None:
    """By backend; without candidates there is nothing to tell."""
    of = replacing(place, records)
    assert not await of.families()
    await of.replace(terms())
    of._routes["content"].new("n")
    found = {
        family.name: [(dict(sample.labels), sample.value) for sample in family.samples]
        for family in await of.families()
    }
    by = {"backend": "content@mine"}
    assert found["splitd_candidate_sent_home"] == [(by, 1.0)]
    assert found["splitd_candidate_chosen"] == [(by, 0.0)]
    assert (found["splitd_candidate_up"], found["splitd_candidate_taking"]) == ([(by, 0.0)], [(by, 1.0)])


async def test_the_same_name_elsewhere_is_the_same_store(place: Path, records: Records) -> None:
    """It has moved: its objects are asked for there from now on."""
    of = replacing(place, records, ending=0.01)
    await of.replace(terms())
    before = of._routes["content"].having("content@mine")
    candidate, moved = await of.replace(terms(address="/y.sock"))
    assert (moved, of.upstream(candidate)) == ("/x.sock", of._routes["content"].having("content@mine"))
    assert of._routes["content"].having("content@mine").address == "/y.sock"
    await eventually_async(lambda: asyncio.sleep(0, before.retired), "the connection to the old one stays")
    with pytest.raises(errors.Unavailable, match="service content@mine has moved to /y.sock"):
        await before.ready()


async def test_one_that_comes_again_is_reached_although_its_connection_was_to_be_closed(
    place: Path, records: Records
) -> None:
    """The former connection ends; the new one has nothing to do with it."""
    of = replacing(place, records, ending=0.01)
    candidate, _ = await of.replace(terms())
    before = of.upstream(candidate)
    await of.restore("content")
    await of.forget("content")
    candidate, _ = await of.replace(terms())
    await eventually_async(lambda: asyncio.sleep(0, before is not None and before.retired), "it stays")
    after = of.upstream(candidate)
    assert after is not None and after is not before
    assert not after.retired


async def test_nobody_goes_on_trying_to_reach_one_that_is_gone_and_was_down(place: Path, records: Records) -> None:
    """Only a connection that is there may have calls under way, for which it is left open."""
    of = Replacing(Routes(place, Config(candidate_hold=0.01), {}), records, place, ending=3600.0)
    candidate, _ = await of.replace(terms())
    before = of.upstream(candidate)
    await of.restore("content")
    await of.forget("content")
    await eventually_async(lambda: asyncio.sleep(0, before is not None and before.retired), "it is tried for ever")


async def test_only_who_can_be_sent_back_or_has_a_deadline_is_judged(place: Path, records: Records) -> None:
    """The others' streams pass unread."""
    of = replacing(place, records)
    for more, count in (({}, 0), ({"back_at": 5.0}, 1), ({"deadline": 2.0}, 1), ({}, 0)):
        candidate, _ = await of.replace(terms(**more))
        upstream = of.upstream(candidate)
        assert upstream is not None
        assert len(list(upstream.instruments)) == count


async def test_a_backend_without_a_route_is_named(place: Path, records: Records) -> None:
    """The error says how it comes back."""
    with pytest.raises(errors.FailedPrecondition, match="splitd replace content --address ADDRESS --name lost makes"):
        replacing(place, records)._routes["content"].having("content@lost")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '[{"route": "content"}]', "[" * 100_000, '[{"route": "content", "name": "X", "address": "/x"}]'],
)
async def test_a_damaged_file_is_put_aside(
    place: Path, records: Records, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The gateway starts, and the log says what is lost."""
    file = place / "gateway" / "routes.json"
    file.write_text(text)
    assert stands(replacing(place, records)) == []
    assert (place / "gateway" / "routes.json.damaged").read_text() == text
    assert "does not hold the candidates of routes" in caplog.text
    assert not file.exists()


def configured(text: str) -> list[Terms]:
    return candidates(settings.File("c.toml", tomllib.loads(text)))


async def test_the_configuration_names_candidates(place: Path, records: Records) -> None:
    """By route; each stands from the start."""
    found = configured(
        '[services.content]\naddress = "/x.sock"\nname = "mine"\nshare = 25.0\ndeadline = "2s"\n'
        '[services.snapshots.overlayfs]\naddress = "unix:///run/my-snapshots.sock"\nnamespaces = ["a"]\n'
    )
    assert found == [
        terms(share=25.0, deadline=2.0),
        Terms(
            route="snapshots.overlayfs", name="my-snapshots", address="unix:///run/my-snapshots.sock", namespaces=("a",)
        ),
    ]
    of = replacing(place, records, found)
    assert stands(of) == [("mine", "")]
    of._routes.know(["overlayfs"])
    assert stands(of, "snapshots.overlayfs") == [("my-snapshots", "")]
    assert records.known == ["content@mine", "snapshots.overlayfs@my-snapshots"]


async def test_a_configured_candidate_that_ended_stays_so_until_its_entry_changes(
    place: Path, records: Records
) -> None:
    """One that the configuration names no more is draining, and goes."""
    of = replacing(place, records, [terms()])
    await of.restore("content")
    assert stands(replacing(place, records, [terms()])) == [("mine", RESTORED)]
    changed = replacing(place, records, [terms(share=10.0)])
    assert stands(changed) == [("mine", "")]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05), loops.running("the ends of candidates", changed.follow):
            await asyncio.Event().wait()
    assert json.loads((place / "gateway" / "routes.json").read_text())[0]["share"] == 10.0
    assert stands(replacing(place, records)) == [("mine", UNNAMED)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[services.snapshots]\naddress = "/x"', "service is not a table"),
        ('[services.nothing]\naddress = "/x"', r"\[services.nothing\] is no route"),
        ("[services.content]\nshare = 5.0", "address is missing"),
        (
            '[services.content]\naddress = "/x"\ncapabilities = ["rebase"]',
            "content takes no capabilities: only snapshotters",
        ),
        ('[services.content]\naddress = "x"', r"\[services.content\]: address: 'x' is neither /path"),
        ('[services.images]\naddress = "/x"\nshare = 5.0', r"\[services.images\]: images takes no share"),
        ('[services.content]\naddress = "/x"\nadress = "/y"', "unknown key"),
    ],
)
def test_what_a_configuration_cannot_mean_is_refused(text: str, words: str) -> None:
    """The error names the entry."""
    with pytest.raises(errors.InvalidArgument, match=words):
        configured(text)
