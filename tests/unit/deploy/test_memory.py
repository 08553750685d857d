"""Options that are remembered for nodes, and the choice of the node when few options are given."""

from __future__ import annotations

import argparse
import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import memory
from deploy import place as places
from deploy.failure import Failure
from deploy.memory import Remembered
from deploy.verbs import up
from services.kit import settings


@pytest.fixture(autouse=True)
def alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a separate memory, and no variables of this machine."""
    monkeypatch.setenv("SPLITD_NODES", str(place / "nodes"))
    for name in ("ROOT", "STATE", "CONFIG"):
        monkeypatch.delenv(f"SPLITD_{name}", raising=False)


def words(**given: Path) -> argparse.Namespace:
    return argparse.Namespace(
        **{name: str(given[name]) if name in given else None for name in ("root", "state", "config")}
    )


def test_each_state_has_a_memory_of_its_own(place: Path) -> None:
    """Paths that look alike differ too; a file that cannot be parsed is named in an error, not skipped."""
    one, other = Path("/a/b-c"), Path("/a-b/c")
    kept = Remembered(Path("/r"), None, root_given=True, config_given=False)
    memory.keep(one, kept)
    assert memory.of(one) == kept
    assert memory.of(other) is None
    (file,) = (place / "nodes").iterdir()
    file.write_text("{")
    with pytest.raises(Failure, match=f"{file} cannot be understood; it says how the node at /a/b-c was started"):
        memory.of(one)
    memory.forget(one)
    assert memory.of(one) is None


def test_up_repeats_its_last_options(place: Path) -> None:
    """Given options are used again; settings from a file are read from the file again, since it may have changed."""
    state, config = place / "s", place / "c.toml"
    config.write_text(f"root = '{place}/one'\n")
    _, first = places.to_start(words(state=state, config=config))
    memory.keep(state, first)
    config.write_text(f"root = '{place}/two'\n")
    here, again = places.to_start(words(state=state))
    assert (here.root, here.config) == (place / "two", config)
    assert again == Remembered(place / "two", config, root_given=False, config_given=True)
    memory.keep(state, places.to_start(words(state=state, root=place / "three"))[1])
    assert places.to_start(words(state=state))[0].root == place / "three"


def test_a_broken_file_tells_the_node_that_was_started_with_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for the default file too, if it was written after a node at the default state had started without it.
    ``up`` needs a valid one.
    """
    config = place / "c.toml"
    config.write_text("root = [")
    with pytest.raises(Failure, match="c.toml: Invalid value"):
        places.find(words(config=config))
    memory.keep(place / "s", Remembered(place / "r", config, root_given=False, config_given=True))
    assert places.find(words(config=config)).state == place / "s"
    with pytest.raises(Failure, match="c.toml: Invalid value"):
        places.to_start(words(config=config))
    monkeypatch.setattr(places, "ETC", config)
    monkeypatch.setattr(settings, "STATE", place / "default")
    memory.forget(place / "s")
    memory.keep(place / "default", Remembered(place / "r", None, root_given=False, config_given=False))
    assert places.find(words()) == places.Place(place / "r", place / "default", None)


def test_unchanged_options_are_not_written_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So a full disk prevents no start of the same node. One with other options is started too, and reports that they
    could not be saved. Saved options stay.
    """
    here, kept = (
        places.Place(place / "r", place / "s", None),
        Remembered(place / "r", None, root_given=True, config_given=False),
    )
    memory.keep(here.state, kept)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    up._remember(here, kept)
    assert capsys.readouterr().err == ""
    up._remember(here, replace(kept, root_given=False))
    assert (
        "warning: after a reboot, splitd up needs --root and --config of this node: no space left on device"
        in capsys.readouterr().err
    )
    assert memory.of(here.state) == kept
    assert len(list((place / "nodes").iterdir())) == 1


def test_a_node_that_was_started_before_there_was_a_memory_is_started_again_with_its_root(place: Path) -> None:
    """A splitd before 0.2 wrote the root into the state directory only: an upgrade must not continue with another root,
    which has other images.
    """
    state, config = place / "s", place / "c.toml"
    state.mkdir()
    places.Place(place / "one", state, None).remember()
    here, kept = places.to_start(words(state=state))
    assert here == places.Place(place / "one", state, None)
    assert kept == Remembered(place / "one", None, root_given=True, config_given=False)
    with pytest.raises(Failure, match=f"was last started with root {place}/one, not {place}/other"):
        up._refuse_another_root(places.to_start(words(state=state, root=place / "other"))[0], moved=False)
    config.write_text(f"root = '{place}/two'\n")
    places.Place(place / "two", state, config).remember()
    assert places.to_start(words(state=state))[1] == Remembered(
        place / "two", config, root_given=False, config_given=True
    )
