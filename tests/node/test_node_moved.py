"""A node is the same after a reboot: its state directory alone determines its root and its configuration, and another
root is not taken for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support import Node, short_directory, splitd

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """The directory of a node that was started with its own root and a configuration, and went down with the machine:
    STATE is gone.
    """
    with short_directory() as directory:
        node = Node(directory, config=f"root = '{directory}/root'\n[gateway]\nhold = '7s'\n")
        try:
            up(directory, "--config", directory / "config.toml")
            node.down()
            shutil.rmtree(node.state)
            yield directory
        finally:
            node.clear()


def up(home: Path, *more: str | Path, ok: bool = True) -> CompletedProcess[str]:
    return splitd("up", "--state", home / "state", *more, ok=ok)


def test_logs_are_found_by_the_state_alone(home: Path) -> None:
    """They are not those of the default root."""
    assert "supervisord started" in splitd("logs", "supervisord", "--state", home / "state").stdout


def test_logs_of_a_state_that_never_had_a_node_are_not_anothers(home: Path) -> None:
    """Nothing is known of that state; the root in the configuration has another node's logs."""
    config = home / "other.toml"
    config.write_text(f"root = '{home}/root'\nstate = '{home}/other'\n")
    done = splitd("logs", "supervisord", "--config", config, ok=False)
    assert (
        f"no node was started at {home}/other: the logs below {home}/root are of the node at {home}/state"
        in done.stderr
    )


def test_up_starts_the_same_node_by_its_state_alone(home: Path) -> None:
    """Root and configuration are the same as before."""
    try:
        up(home)
        text = (home / "state" / "supervisord.conf").read_text()
        assert f"--config {home}/config.toml" in text
        assert f"--root {home}/root" in text
        assert 'hold = "7s"' in splitd("config", "dump", "--state", home / "state").stdout
    finally:
        splitd("down", "--state", home / "state")


def test_another_root_is_not_given_the_containers_of_this_one(home: Path) -> None:
    """A restore beside running containers would show them as its own, while they write below the old root. If that root
    is gone, they could not be stopped there.
    """
    up(home)
    splitd("down", "--state", home / "state")
    bundle = home / "state" / "io.containerd.runtime.v2.task" / "default" / "box"
    bundle.mkdir(parents=True)
    restored = home / "restored"
    shutil.copytree(home / "root", restored)
    try:
        done = up(home, "--root", restored, "--moved", ok=False)
        assert f"containers run whose files are below {home}/root, not {restored} (default/box): " in done.stderr
        assert f"up --root {home}/root --state {home}/state and " in done.stderr
        assert f"down --containers --state {home}/state first" in done.stderr
    finally:
        bundle.rmdir()


@pytest.mark.parametrize("more", ["flag", "environment", "file"])
def test_another_root_is_refused_with_both_named(home: Path, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds however the other root is given; nothing is created in it."""
    other = home / "elsewhere"
    words: list[str | Path] = []
    if more == "flag":
        words = ["--root", other]
    elif more == "environment":
        monkeypatch.setenv("SPLITD_ROOT", str(other))
    else:
        config = home / "elsewhere.toml"
        config.write_text(f"root = '{other}'\n")
        words = ["--config", config]
    done = up(home, *words, ok=False)
    assert (
        f"the node at {home}/state was last started with root {home}/root, not {other}: --root {home}/root starts it "
        f"again; --moved starts it with {other}"
    ) in done.stderr
    assert not other.exists()


def test_a_copy_of_a_root_in_use_is_said_to_be_one_and_moved_takes_it(home: Path) -> None:
    """The original goes on, and after --moved the copy is a node of its own."""
    copy = Node(home / "copy")
    up(home)
    try:
        shutil.copytree(home / "root", copy.root)
        done = copy.splitd("up", ok=False)
        assert (
            f"the root {copy.root} is a copy of {home}/root, which the node at {home}/state is using: --moved makes "
            "the copy this node's own"
        ) in done.stderr
        copy.splitd("up", "--moved")
        assert copy.status()["healthy"]
        assert "is in use by" in splitd("up", "--root", home / "root", "--state", home / "third", ok=False).stderr
    finally:
        copy.clear()
        splitd("down", "--state", home / "state")


def test_a_root_that_was_moved_is_taken_when_told_so(home: Path) -> None:
    """From then on the new place is the known one."""
    (home / "root").rename(home / "moved")
    assert "--moved" in up(home, "--root", home / "moved", ok=False).stderr
    try:
        up(home, "--root", home / "moved", "--moved")
        splitd("down", "--state", home / "state")
        up(home)
        assert f"--root {home}/moved" in (home / "state" / "supervisord.conf").read_text()
    finally:
        splitd("down", "--state", home / "state", ok=None)
