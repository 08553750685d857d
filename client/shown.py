r"""What people are shown: everything that this project's commands print goes through here, but for JSON.

Names, labels, digests and messages come from images, registries and other clients of the node. One with an escape
sequence would set a terminal's title, clear it, or type into it; one with a new line would be a line of ours; one with
a bidirectional override would read as another name. So each such character is shown as its escape (``\x1b``,
``\u202e``), and what is a line here is one line there. Backslashes stay: what is shown is for eyes, ``--json`` is for
programs.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from typing import TextIO

_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode's categories of controls, of formats (bidirectional ones, soft hyphens, tags), of surrogates, and of
separators of lines and paragraphs.
"""

LONGEST = 512
"""Characters of a cell that are shown: a name that a registry can have, with tag and digest, has fewer."""
WIDEST = 128
"""Characters of a column; of a longer cell the rest stands where the next one begins, and its row goes on behind it."""


def escaped(text: str) -> str:
    """``text`` as one line that does nothing to a terminal."""
    return text if text.isprintable() else "".join(map(_character, text))


def _character(char: str) -> str:
    if unicodedata.category(char) not in _UNSEEN:
        return char
    code = ord(char)
    return {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(char) or (
        rf"\x{code:02x}" if code < 0x100 else rf"\u{code:04x}" if code < 0x10000 else rf"\U{code:08x}"
    )


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines, to standard output if not to ``file``."""
    for line in lines:
        print(escaped(line), file=file, flush=True)


def complain(*lines: str) -> None:
    """Say what is wrong, on standard error."""
    say(*(f"splitd: {line}" for line in lines), file=sys.stderr)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of as many cells each, in columns. One long cell makes its row longer, and not the others: a
    stranger's name may have megabytes.
    """
    shown = [[escaped(cell if len(cell) <= LONGEST else f"{cell[:LONGEST]}...") for cell in row] for row in rows]
    widths = [min(max(map(len, column)), WIDEST) for column in zip(*shown, strict=True)]
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def page(text: str) -> None:
    """Print text of many lines, such as a log. New lines and tabs stay, and there is none at its end that it has
    not itself.
    """
    sys.stdout.write("\n".join("\t".join(map(escaped, line.split("\t"))) for line in text.split("\n")))
    sys.stdout.flush()


def document(text: str) -> None:
    """A text of our own that another program reads (a shell, man): as it is. Nothing from outside may be in it."""
    print(text, end="" if text.endswith("\n") else "\n")
