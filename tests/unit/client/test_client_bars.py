"""A transfer as lines, in terminals of any size."""

from __future__ import annotations

import pytest

from client import bars
from client.progress import Stage, Tally
from services.images.transfer import Progress

MIB = 1 << 20


def tally(*parts: tuple[str, str, int, int]) -> Tally:
    """Make a tally of (name, event, bytes, total)."""
    made = Tally(0.0, Stage.DOWNLOADED)
    for name, event, progress, total in parts:
        made.take(Progress(event, f"layer-{name}", (), 0, total), 0.5)
        made.take(Progress(event, f"layer-{name}", (), progress, total), 1.0)
    return made


LAYERS = (
    ("a", "extracted", 3 * MIB, 3 * MIB),
    ("b", "downloading", 5 * MIB, 10 * MIB),
    ("c", "waiting", 0, 2 * MIB),
    ("d", "already exists", MIB, MIB),
)


def test_each_layer_has_a_line_with_its_bar_and_all_have_one() -> None:
    """They are as in 80 columns; the figures of all lines are aligned."""
    assert bars.lines(tally(*LAYERS), "pulling box", 1.0, 80, 24) == [
        "pulling box  1.0 s",
        "layer-a       done                                        3.0 MiB",
        "layer-b       downloading  [========>        ]       5.0/10.0 MiB    10.0 MiB/s",
        "layer-c       waiting                                     2.0 MiB",
        "layer-d       exists                                      1.0 MiB",
        "total         2 of 4       [=========>       ]       8.0/15.0 MiB    10.0 MiB/s",
    ]


def test_before_anything_is_known_there_is_the_title() -> None:
    """The elapsed time is shown too."""
    assert bars.lines(Tally(0.0), "pulling box", 75.0, 80, 24) == ["pulling box  1m15s"]


def test_what_is_waited_for_is_shown_at_the_end() -> None:
    """The bars stay where they are. It is shown until there is another status, also where there is little room."""
    made = tally(*LAYERS)
    before = bars.lines(made, "pulling box", 1.0, 80, 24)
    made.take(Progress("waiting for r.test\n: asked to wait 3 s (429)", parents=("r.test\n", "pause")), 1.0)
    assert bars.lines(made, "pulling box", 1.0, 80, 24) == [*before, r"waiting for r.test\n: asked to wait 3 s (429)"]
    for rows in (2, 3, 4, 6):
        lines = bars.lines(made, "pulling box", 1.0, 80, rows)
        assert len(lines) <= rows - 1
        assert lines[-1].startswith("waiting for r.test")
    made.take(Progress("Pulling from r.test"), 1.0)
    assert bars.lines(made, "pulling box", 1.0, 80, 24) == before


@pytest.mark.parametrize("columns", [1, 2, 20, 59, 60, 69, 70, 71, 80, 120, 1000])
def test_no_line_reaches_the_last_column(columns: int) -> None:
    """A terminal would wrap at the last column."""
    lines = bars.lines(tally(*LAYERS), "pulling 127.0.0.1:5000/a/long/name:latest", 1.0, columns, 24)
    assert len(lines) == 6
    assert max(map(len, lines)) < max(columns, 1)
    assert any("[" in line for line in lines) == (columns >= 71)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 24])
def test_lines_are_fewer_than_rows(rows: int) -> None:
    """The cursor rests below them."""
    many = [
        (f"{n:02}", event, MIB, 2 * MIB)
        for n, event in enumerate(["extracted"] * 10 + ["downloading", "extracting"] + ["waiting"] * 10)
    ]
    lines = bars.lines(tally(*many), "pulling box", 1.0, 80, rows)
    assert len(lines) <= max(1, rows - 1)


def test_where_there_is_no_room_for_all_the_busy_ones_stay() -> None:
    """Then come those that wait, in their order; the others are counted."""
    many = [
        (f"{n:02}", event, MIB, 2 * MIB)
        for n, event in enumerate(["extracted"] * 3 + ["downloading", "extracting"] + ["waiting"] * 3)
    ]
    lines = bars.lines(tally(*many), "pulling box", 1.0, 80, 8)
    assert [line.split()[0] for line in lines] == [
        "pulling",
        "layer-03",
        "layer-04",
        "layer-05",
        "layer-06",
        "and",
        "total",
    ]
    assert lines[5] == "and 4 more"
    assert len(bars.final(tally(*many), 80)) == 8


def test_a_bar_is_full_only_at_the_end() -> None:
    """With one byte missing it still has a gap."""
    assert bars._bar(0, 10, 12) == "[>         ]"
    assert bars._bar(9_999_999, 10_000_000, 12) == "[=========>]"
    assert bars._bar(10, 10, 12) == "[==========]"
    assert bars._bar(11, 10, 12) == "[==========]"


def test_without_a_total_there_is_no_bar() -> None:
    """An archive from a pipe has no total."""
    made = Tally(0.0)
    made.take(Progress("receiving", "/x/box.tar", progress=5 * MIB), 1.0)
    assert bars.lines(made, "exporting", 1.0, 80, 24)[1:] == [
        "box.tar       receiving                                   5.0 MiB"
    ]


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024 * 1023, "1023.0 KiB"),
        (1024 * 1023.96, "1.0 MiB"),
        (3.4 * MIB, "3.4 MiB"),
        (5 << 40, "5.0 TiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_sizes_are_in_the_unit_that_people_read(amount: float, said: str) -> None:
    """They are powers of 1024, with one digit after the point."""
    assert bars.size(amount) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0 s"), (4.23, "4.2 s"), (59.94, "59.9 s"), (59.96, "1m0s"), (200, "3m20s"), (3700, "1h1m")],
)
def test_durations(seconds: float, said: str) -> None:
    """Tenths of a second are shown while they matter."""
    assert bars.duration(seconds) == said
