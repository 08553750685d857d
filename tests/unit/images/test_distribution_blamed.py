"""The nodes that gave wrong bytes are remembered over a restart, and not for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.images.distribution.blamed import FIRST, LONGEST, NODES, Blamed


def test_a_blame_ends_and_outlasts_the_process(tmp_path: Path) -> None:
    """The second one lasts twice as long; none lasts for more than a day."""
    now = 1e9
    file = tmp_path / "blamed"

    def again() -> Blamed:
        return Blamed(file, clock=lambda: now)

    assert again().add("n1", "wrong bytes") == FIRST
    assert "n1" in again() and list(again()) == ["n1"] and "n2" not in again()
    now += FIRST + 1
    assert "n1" not in again() and list(again()) == []
    assert again().add("n1", "wrong bytes") == 2 * FIRST
    now += FIRST + 1
    assert "n1" in again()
    for _ in range(20):
        assert again().add("n1", "wrong bytes") <= LONGEST
    now -= 10 * LONGEST
    assert "n1" not in again(), "the clock was set back, and the blame would not end"


def test_no_more_nodes_are_remembered_than_the_limit(tmp_path: Path) -> None:
    """The latest ones are."""
    blamed = Blamed(tmp_path / "blamed")
    blamed._nodes = {f"n{number}": (0.0, 0.0, "") for number in range(NODES)}
    blamed.add("last", "wrong bytes")
    found = Blamed(tmp_path / "blamed")
    assert (list(found), len(found._nodes)) == (["last"], NODES)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b'{"nodes": []}', b'{"nodes": {"a": 1}}', b'{"nodes": {"a": ["x", 1, ""]}}', b"\xff", b"[" * 9999],
)
def test_a_file_that_makes_no_sense_is_left(tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The log says so, and the next blame makes a good one."""
    file = tmp_path / "blamed"
    file.write_bytes(text)
    blamed = Blamed(file)
    assert list(blamed) == []
    assert str(file) in caplog.text
    blamed.add("n1", "why")
    assert list(json.loads(file.read_text())["nodes"]) == ["n1"]


def test_without_a_file_that_can_be_written_nodes_are_blamed_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blamed = Blamed(tmp_path / "none" / "blamed")
    blamed.add("n1", "why")
    assert "n1" in blamed
    assert "a restart forgets" in caplog.text
