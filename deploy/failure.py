"""What an operator is told when something is wrong: the one exception that a verb ends with, and what to say of a mistyped word."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class Failure(Exception):
    """``message`` is one line that says what is wrong and what to do; ``more`` are other lines of the kind."""

    def __init__(self, message: str, code: int = 1, more: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.lines = (message, *more)


def mistyped(word: str, known: list[str], what: str) -> str:
    """What to say of a word that is none of those known."""
    near = difflib.get_close_matches(word, known, 1)
    return f"{what} {word!r} is not known{f', did you mean {near[0]!r}?' if near else ''} ({', '.join(known)})"
