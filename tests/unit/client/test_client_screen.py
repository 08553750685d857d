"""Lines redrawn in place, on an emulated terminal."""

from __future__ import annotations

import random
import re

import pyte
import pytest

from client.screen import Screen

MOVES = re.compile(r"\x1b\[[0-9?]*[A-Za-z]|[\r\n]")


class Emulated:
    """A terminal that already shows some lines, and a Screen on it."""

    def __init__(self, columns: int = 40, rows: int = 10, before: int = 2) -> None:
        self.terminal = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self.terminal)
        self.written: list[str] = []
        self.screen = Screen(self._take)
        self.feed("".join(f"$ before {n}\r\n" for n in range(before)))

    def feed(self, text: str) -> None:
        self._stream.feed(text)

    def _take(self, text: str) -> None:
        self.written.append(text)
        self.feed(text)

    def draw(self, *lines: str) -> None:
        self.screen.draw(lines, self.terminal.columns, self.terminal.lines)

    @property
    def shown(self) -> list[str]:
        lines = [line.rstrip() for line in self.terminal.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines


BEFORE = ["$ before 0", "$ before 1"]


def test_lines_replace_those_before_and_nothing_else() -> None:
    """The new lines may be more, fewer, longer or shorter."""
    emulated = Emulated()
    for lines in (["one", "two"], ["one", "two and more", "three"], ["1", "2"], ["1", "2"], [], ["x"]):
        emulated.draw(*lines)
        assert emulated.shown == BEFORE + lines
        assert (emulated.terminal.cursor.x, emulated.terminal.cursor.y) == (0, 2 + len(lines))


def test_only_lines_that_differ_are_written() -> None:
    """Nothing is written if no line differs: so the screen does not flicker."""
    emulated = Emulated()
    emulated.draw("one", "two", "three")
    emulated.draw("one", "two", "three")
    assert len(emulated.written) == 1
    emulated.draw("one", "2", "three")
    assert MOVES.sub("", emulated.written[1]) == "2"


def test_between_frames_the_cursor_shows() -> None:
    """However the program ends, the terminal is as before."""
    emulated = Emulated()
    for lines in (["one"], ["two"], ["two", "three"]):
        emulated.draw(*lines)
        assert not emulated.terminal.cursor.hidden
    emulated.screen.finish(["end"])
    assert not emulated.terminal.cursor.hidden


def test_at_the_bottom_the_terminal_scrolls() -> None:
    """New lines push up the earlier contents of the terminal; our own lines are still found."""
    emulated = Emulated(rows=5, before=4)
    emulated.draw("one")
    emulated.draw("one", "two", "three", "four")
    assert emulated.shown == ["one", "two", "three", "four"]
    emulated.draw("1", "2", "3", "4")
    assert emulated.shown == ["1", "2", "3", "4"]


def test_typed_characters_disappear_with_the_last_frame() -> None:
    """The terminal echoes ^C where the cursor rests."""
    emulated = Emulated()
    emulated.draw("one", "two")
    emulated.feed("^C")
    emulated.screen.finish(["one", "2"])
    assert emulated.shown == [*BEFORE, "one", "2"]


def test_at_the_end_there_may_be_more_lines_than_rows() -> None:
    """They scroll, and all are written."""
    emulated = Emulated(rows=5)
    emulated.draw("title", "some")
    emulated.screen.finish([f"line {n}" for n in range(12)])
    assert emulated.shown == ["line 8", "line 9", "line 10", "line 11"]
    assert "title" not in "".join(emulated.shown)


@pytest.mark.parametrize(("columns", "rows"), [(20, 10), (80, 10), (40, 6), (40, 30), (10, 4)])
def test_another_size_is_drawn_for_anew(columns: int, rows: int) -> None:
    """Every line is written again; afterwards frames go on as before."""
    emulated = Emulated()
    emulated.draw("one", "two", "three")
    emulated.terminal.resize(rows, columns)
    emulated.draw("one", "two", "three")
    assert emulated.shown[-3:] == ["one", "two", "three"]
    assert emulated.shown.count("one") == 1
    emulated.draw("one", "2", "three")
    assert emulated.shown[-3:] == ["one", "2", "three"]
    assert MOVES.sub("", emulated.written[-1]) == "2"


def test_any_order_of_frames_and_sizes() -> None:
    """The last lines of the screen are those of the last frame, and no line of an earlier one is left."""
    chance = random.Random(1)
    for _ in range(30):
        emulated = Emulated(columns=30, rows=12)
        for frame in range(40):
            if chance.random() < 0.1:
                emulated.terminal.resize(chance.randrange(9, 20), 30)
            lines = [
                chance.choice(["short", "a much longer line", f"frame {frame}"]) for _ in range(chance.randrange(1, 8))
            ]
            emulated.draw(*lines)
            assert emulated.shown[-len(lines) :] == lines
