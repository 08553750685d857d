"""What an operator is told when something is wrong: the one exception that a verb ends with, and what to say of a
mistyped word.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class Failure(Exception):
    """``message`` is one line that says what is wrong and what to do; ``more`` are other lines of the kind."""

    def __init__(self, message: str, code: int = 1, more: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.lines = (message, *more)


LIKENESS = 0.7
"""From here on two words are taken for one and its mistyping: below it is `ps` and `push`, above it `donw` and
`down`.
"""


def mistyped(word: str, known: list[str], what: str, meant: str = "") -> str:
    """What to say of a word that is none of those known; ``meant`` is what it stands for, where that is known, with
    why behind a colon.
    """
    near, _, why = (
        meant.partition(": ")
        if meant
        else (next(iter(difflib.get_close_matches(word, known, 1, LIKENESS)), ""), "", "")
    )
    return (
        f"{what} {word!r} is not known{f', did you mean {near!r}?' if near else ''}{f' {why}' if why else ''} "
        f"({', '.join(known)})"
    )
