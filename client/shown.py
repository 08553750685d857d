r"""Everything that this project's commands print to people goes through here, except JSON.

Names, labels, digests and messages come from images, registries and other clients of the node. One with an escape
sequence would set a terminal's title, clear it, or type into it. One with a new line would look like a line of ours.
One with a bidirectional override would read as another name. So each such character is shown as its escape (``\x1b``,
``\u202e``), and one line stays one line. Backslashes are not escaped: this output is for eyes, ``--json`` is for
programs.
"""

from __future__ import annotations

import enum
import errno
import os
import select
import sys
import unicodedata
from collections.abc import Sequence
from typing import TextIO

_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode's categories of controls, of formats (bidirectional ones, soft hyphens, tags), of surrogates, and of
separators of lines and paragraphs.
"""

LONGEST = 512
"""Characters of a cell that are shown. A name that a registry can have, with tag and digest, is shorter."""
WIDEST = 128
"""Characters of a column. A longer cell reaches into the next columns, and the rest of its row moves to the right."""

OUTPUT = "standard output"
"""Its name in errors: the ``filename`` of an OSError."""


def escaped(text: str) -> str:
    """``text`` as one line that has no effect on a terminal."""
    return text if text.isprintable() else "".join(map(_character, text))


def _character(char: str) -> str:
    if unicodedata.category(char) not in _UNSEEN:
        return char
    code = ord(char)
    return {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(char) or (
        rf"\x{code:02x}" if code < 0x100 else rf"\u{code:04x}" if code < 0x10000 else rf"\U{code:08x}"
    )


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines, to standard output unless ``file`` is given."""
    for line in lines:
        print(escaped(line), file=file, flush=True)


def check_is_read() -> None:
    """BrokenPipeError if standard output is a pipe that nobody reads any more; for those who may print nothing for
    long.
    """
    if sys.stdout.isatty():
        return
    looked = select.poll()
    looked.register(sys.stdout.fileno(), 0)
    if any(event & select.POLLERR for _, event in looked.poll(0)):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE), OUTPUT)


def complain(*lines: str) -> None:
    """Print errors and warnings on standard error."""
    say(*(f"splitd: {line}" for line in lines), file=sys.stderr)


def ask(question: str) -> str:
    """Print a question, and return the line that a person types after it; "" at the end of the input."""
    print(escaped(question), end=" ", flush=True)
    return sys.stdin.readline().strip()


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with the same number of cells, in columns. A long cell makes only its own row longer, since a name
    from outside may have megabytes.
    """
    shown = [[escaped(cell if len(cell) <= LONGEST else f"{cell[:LONGEST]}...") for cell in row] for row in rows]
    widths = [min(max(map(len, column)), WIDEST) for column in zip(*shown, strict=True)]
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def page(text: str) -> None:
    """Print text of many lines, such as a log. New lines and tabs stay. No new line is added at the end."""
    sys.stdout.write("\n".join("\t".join(map(escaped, line.split("\t"))) for line in text.split("\n")))
    sys.stdout.flush()


def document(text: str) -> None:
    """Print a text of our own that another program reads (a shell, man), unchanged. Nothing from outside may be in
    it.
    """
    print(text, end="" if text.endswith("\n") else "\n")


class Style(enum.StrEnum):
    """How a piece of a line looks on a terminal with colours; the values are parameters of SGR (ECMA-48)."""

    PLAIN = ""
    BOLD = "1"
    DIM = "2"
    BAR = "36"
    CRITICAL = "1;31"
    WAIT = "33"
    ERROR = "31"


Piece = tuple[str, Style]
"""A text and its style."""


def has_colours(file: TextIO | None = None) -> bool:
    """Whether ``file`` (standard output, if None) is a terminal that shows colours, and the user does not object
    (no-color.org).
    """
    out = sys.stdout if file is None else file
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def can_draw(file: TextIO | None = None) -> bool:
    """Whether ``file`` (standard output, if None) takes characters that are not ASCII."""
    encoding = (sys.stdout if file is None else file).encoding or "ascii"
    return encoding.lower().replace("-", "") == "utf8"


def painted(line: Sequence[Piece], *, colours: bool) -> str:
    """A line of pieces as text, each piece escaped."""
    if not colours:
        return "".join(escaped(text) for text, _ in line).rstrip()
    return "".join(f"\x1b[{style}m{escaped(text)}\x1b[0m" if style else escaped(text) for text, style in line)


def say_painted(*lines: Sequence[Piece]) -> None:
    """Print lines of pieces, in colours if standard output shows them."""
    colours = has_colours()
    for line in lines:
        print(painted(line, colours=colours), flush=True)


def columns(text: str) -> int:
    """The columns of a terminal that escaped text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fitted(text: str, room: int) -> str:
    """Escaped text in exactly ``room`` columns: filled up with blanks, or cut with three dots."""
    if columns(text) > room:
        left = max(0, room - 3)
        text = text[:left]  # a character takes up to two columns
        while columns(text) > left:
            text = text[:-1]
        text = f"{text}..."[:room]
    return text + " " * (room - columns(text))
