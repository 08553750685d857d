"""A tally of a transfer: its parts, their stages and bytes, for events in any order."""

from __future__ import annotations

import random

import pytest

from client.progress import _RANKS, RATE_SECONDS, Part, Rate, Stage, Tally
from services.images.transfer import Progress
from services.images.waits import Wait
from services.oci.descriptors import Descriptor

LAYER = "layer-sha256:aa"
DESCRIPTOR = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "sha256:aa", 100)


def event(what: str, progress: int = 0, total: int = 100, name: str = LAYER) -> Progress:
    return Progress(what, name, ("manifest-sha256:bb",), progress, total, DESCRIPTOR)


def pull() -> Tally:
    return Tally(0.0, Stage.DOWNLOADED)


def test_a_layer_goes_through_its_stages() -> None:
    """Each change is reported once; downloaded bytes count as moved, extracted ones do not."""
    tally, seen = pull(), []
    for what, progress in (
        ("waiting", 0),
        ("downloading", 40),
        ("downloading", 40),
        ("downloading", 90),
        ("complete", 100),
        ("extracting", 0),
        ("extracting", 60),
        ("extracted", 100),
    ):
        if (part := tally.take(event(what, progress), 1.0)) is not None:
            seen.append((str(part.stage), part.bytes, tally.moved))
    assert seen == [
        ("waiting", 0, 0),
        ("downloading", 40, 40),
        ("downloading", 90, 90),
        ("downloaded", 100, 100),
        ("extracting", 0, 100),
        ("extracting", 60, 100),
        ("done", 100, 100),
    ]


def test_existing_layers_are_not_counted_even_if_extracted() -> None:
    """The blob was there; only its snapshot was not."""
    tally = pull()
    for what in ("waiting", "already exists", "extracting", "extracted"):
        tally.take(event(what, 100), 1.0)
    (part,) = tally.rows
    assert (part.stage, part.existed, tally.moved, tally.total) == (Stage.DONE, True, 0, 0)


def test_bytes_of_an_earlier_attempt_are_not_moved_again() -> None:
    """The bar shows all bytes, the figures only those of this attempt."""
    tally = Tally(0.0, Stage.DOWNLOADED, {LAYER: 30})
    tally.take(event("downloading", 50), 1.0)
    assert (tally.rows[0].bytes, tally.moved, tally.total) == (50, 20, 70)
    tally.finish(2.0)
    assert (tally.moved, tally.rows[0].bytes) == (70, 100)


def test_a_push_is_complete_when_the_registry_has_it() -> None:
    """A push has no later stage."""
    tally = Tally(0.0)
    tally.take(event("uploading", 10), 1.0)
    tally.take(event("complete", 100), 2.0)
    assert tally.rows[0].stage is Stage.DONE


def test_downloads_that_go_on_below_an_extraction_are_counted() -> None:
    """A node may unpack a layer while it arrives: the stage does not go back."""
    tally = pull()
    tally.take(event("extracting", 10), 1.0)
    assert tally.take(event("downloading", 70), 2.0) is None
    assert (tally.rows[0].stage, tally.rows[0].bytes, tally.moved) == (Stage.EXTRACTING, 10, 70)


@pytest.mark.parametrize("seed", range(50))
def test_stages_and_bytes_never_go_back(seed: int) -> None:
    """Events come in any order; some are lost, some are late."""
    chance, tally, last = random.Random(seed), pull(), None
    for _ in range(200):
        what = chance.choice(["waiting", "downloading", "complete", "already exists", "extracting", "extracted"])
        moved = tally.moved
        part = tally.take(event(what, chance.randrange(101)), 1.0)
        assert tally.moved >= (0 if what == "already exists" else moved)
        if part is None:
            continue
        now = (_RANKS[part.stage], part.bytes)
        assert last is None or now[0] > last[0] or part.stage is Stage.EXISTS or now[1] >= last[1]
        assert last is None or now[0] >= last[0]
        assert part.bytes <= part.total == 100
        last = now
    assert all(part.is_over for part in (tally.finish(2.0), tally.rows)[1])


def test_the_end_of_a_transfer_is_the_end_of_its_parts() -> None:
    """The node need not have reported the end of each; parts that were complete are not reported again."""
    tally = pull()
    tally.take(event("extracted", 100), 1.0)
    tally.take(event("waiting", name="config-sha256:cc"), 1.0)
    assert [part.name for part in tally.finish(2.0)] == ["config-sha256:cc"]
    assert not tally.finish(3.0)


def test_documents_are_parts_without_rows() -> None:
    """They are small; their bytes count."""
    tally = pull()
    tally.take(event("complete", 5, 5, "config-sha256:cc"), 1.0)
    assert (tally.rows, tally.moved) == ([], 5)


def test_other_events_name_the_root_and_what_was_saved() -> None:
    """They do not belong to a part."""
    tally = pull()
    for what, name in (("Resolving from OCI Registry (x)", ""), ("fetching image content", "x"), ("saved", "x:1")):
        assert tally.take(Progress(what, name, descriptor=DESCRIPTOR if name else None), 1.0) is None
    assert (tally.root, tally.saved, tally.parts) == ("sha256:aa", {"x:1": "sha256:aa"}, {})


def test_an_archive_of_unknown_size_has_no_total() -> None:
    """It has one when it is over."""
    tally = Tally(0.0)
    tally.take(Progress("receiving", "x.tar", progress=10), 1.0)
    assert (tally.total, tally.rows[0].total, tally.moved) == (0, 0, 10)
    tally.finish(2.0)
    assert (tally.total, tally.rows[0].total) == (10, 10)


def test_a_rate_is_that_of_the_last_seconds() -> None:
    """A burst is forgotten, and a standstill shows."""
    rate = Rate()
    assert rate.at(0.0) == 0
    rate.add(0.0, 0)
    for second in range(1, 11):
        rate.add(float(second), 1000 + second * 100)
    assert rate.at(10.0) == pytest.approx(100)
    assert rate.at(11.0) == pytest.approx(200 / 3)
    assert rate.at(10.0 + RATE_SECONDS) == 0


def test_only_active_jobs_have_a_rate() -> None:
    """A layer that is being unpacked has none any more."""
    part = Part(LAYER, stage=Stage.DOWNLOADING)
    part.rate.add(0.0, 0)
    part.rate.add(1.0, 50)
    assert part.rate_at(1.0) == 50
    part.stage = Stage.EXTRACTING
    assert part.rate_at(1.0) == 0


def test_a_wait_is_an_event_without_a_name_and_with_a_host_and_a_cause() -> None:
    """Any other status ends it; events about parts do not."""
    tally = pull()
    tally.take(Progress("waiting for r.test: asked to wait 3 s (429)", "", ("r.test", "pause"), 1, 3), 1.0)
    tally.take(event("downloading", 10), 1.0)
    assert tally.wait == Wait("pause", "waiting for r.test: asked to wait 3 s (429)", "r.test", 1, 3)
    tally.take(Progress("waiting for r.test, silent for 5 s", "", ("r.test",), 5), 1.0)  # of an older node
    assert tally.wait is None
    tally.take(Progress("getting a token from r.test", "", ("r.test", "token"), 1), 1.0)
    tally.take(Progress("Pulling from r.test"), 1.0)
    assert tally.wait is None
