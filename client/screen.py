"""Lines at the bottom of a terminal that are redrawn in place.

The cursor rests below them, at the start of a line. A frame is one write that changes only the lines that differ, with
the cursor hidden while it moves. Between frames the terminal is as any command leaves it, so there is nothing to
restore however this process ends. Except for hiding the cursor, the escape sequences are those of every terminal since
the VT100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_HIDE, _SHOW, _CLEAR_LINE_END, _CLEAR_BELOW = "\x1b[?25l", "\x1b[?25h", "\x1b[K", "\x1b[J"


class Screen:
    """Draws with ``write``, which takes text for the terminal. The caller must pass fewer lines than the terminal has
    rows, each shorter than its columns.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._lines: list[str] = []
        self._size = (0, 0)

    def draw(self, lines: Sequence[str], columns: int, rows: int) -> None:
        """Show these lines instead of the last ones. If the size of the terminal has changed, all lines are drawn anew,
        since it may have wrapped or lost some.
        """
        resized = self._size not in ((0, 0), (columns, rows))
        self._size = (columns, rows)
        if resized:
            self._redraw(lines, min(len(self._lines), max(0, rows - 1)))
        elif list(lines) != self._lines:
            self._update(lines)
        self._lines = list(lines)

    def finish(self, lines: Sequence[str]) -> None:
        """Leave these lines, which may be more than the terminal has rows, and do not touch them again."""
        self._redraw(lines, len(self._lines))
        self._lines = []

    def _redraw(self, lines: Sequence[str], up: int) -> None:
        # The terminal echoes what a user types where the cursor rests; this clears that too.
        self._write(_HIDE + _up(up) + "\r" + _CLEAR_BELOW + "".join(f"{line}\r\n" for line in lines) + _SHOW)

    def _update(self, lines: Sequence[str]) -> None:
        before = self._lines
        text = [_HIDE, _up(len(before)), "\r"]
        skipped = 0
        for number, line in enumerate(lines):
            if number < len(before) and line == before[number]:
                skipped += 1
                continue
            text += [_down(skipped), line, _CLEAR_LINE_END, "\r\n"]
            skipped = 0
        text.append(_down(skipped))
        text += [_CLEAR_BELOW if len(lines) < len(before) else _CLEAR_LINE_END, _SHOW]
        self._write("".join(text))


def _up(lines: int) -> str:
    return f"\x1b[{lines}A" if lines else ""


def _down(lines: int) -> str:
    return f"\x1b[{lines}B" if lines else ""
