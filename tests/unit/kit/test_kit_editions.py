"""Editions of tables, in files of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.kit.editions import Edition, Editions


def looked(state: Path, table: str = "image") -> Edition:
    edition = Edition(state, table)
    edition.look()
    return edition


def test_a_table_has_another_edition_after_each_change(tmp_path: Path) -> None:
    """And none before the beginning, during a change, and after the end. Other tables keep theirs."""
    editions = Editions(tmp_path, ("image", "container"))
    image, container = looked(tmp_path), looked(tmp_path, "container")
    assert image.now() == b""
    editions.begin()
    seen, other = [image.now()], container.now()
    for _ in range(3):
        with editions.changing({("image", "n"), ("lease", "n")}):
            assert image.now() == b""
        seen.append(image.now())
    assert len(set(seen)) == 4
    assert all(seen)
    assert container.now() == other
    editions.close()
    assert image.now() == b""


def test_each_namespace_has_an_edition(tmp_path: Path) -> None:
    """It stays the same while others change; a change of which no namespace is known concerns all."""
    editions = Editions(tmp_path, ("image",))
    image = looked(tmp_path)
    assert image.now("k8s.io") == b""
    editions.begin()
    before = image.now("k8s.io"), image.now("moby"), image.now()
    with editions.changing([("image", "moby"), ("container", "k8s.io")]):
        assert (image.now("k8s.io"), image.now("moby"), image.now()) == (before[0], b"", b"")
    assert image.now("k8s.io") == before[0]
    assert len({*before, image.now("moby"), image.now()}) == 5
    with editions.changing([("image",)]):
        assert image.now("k8s.io") == b""
    assert image.now("k8s.io") not in (b"", before[0])
    editions.close()
    assert image.now("k8s.io") == b""


def test_a_change_that_fails_makes_an_edition_too(tmp_path: Path) -> None:
    """It may have been made."""
    editions = Editions(tmp_path, ("image",))
    editions.begin()
    image = looked(tmp_path)
    before = image.now()
    with pytest.raises(OSError, match="full"), editions.changing([("image",)]):
        raise OSError("full")
    assert image.now() not in (before, b"")


def test_the_next_owner_has_other_editions_for_those_who_looked_before(tmp_path: Path) -> None:
    """It writes to the same file, also while nobody has noticed that the owner is another."""
    first = Editions(tmp_path, ("image",))
    first.begin()
    image = looked(tmp_path)
    before = image.now()
    os.close(first._files.pop("image"))  # as kill -9 leaves it
    assert image.now() == before
    second = Editions(tmp_path, ("image",))
    assert image.now() == b""
    second.begin()
    assert image.now() not in (before, b"")


def test_a_file_without_an_owner_says_nothing(tmp_path: Path) -> None:
    """An owner of an older release does not write to it."""
    assert looked(tmp_path).now() == b""
    first = Editions(tmp_path, ("image",))
    first.begin()
    os.close(first._files.pop("image"))
    assert looked(tmp_path).now() == b""


def test_a_table_has_one_owner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second one has no editions, and says so in its log."""
    first, image = Editions(tmp_path, ("image",)), Edition(tmp_path, "image")
    first.begin()
    image.look()
    before = image.now()
    second = Editions(tmp_path, ("image",))
    second.begin()
    with second.changing([("image",)]):
        assert image.now() == before
    assert str(tmp_path / "editions" / "image") in caplog.text


def test_a_place_that_cannot_be_written_has_no_editions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The owner works all the same."""
    (tmp_path / "editions").write_text("no directory")
    editions = Editions(tmp_path, ("image",))
    editions.begin()
    with editions.changing([("image",)]):
        assert looked(tmp_path).now() == b""
    assert str(tmp_path / "editions" / "image") in caplog.text
