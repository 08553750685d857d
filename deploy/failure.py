"""Errors as an operator sees them: the exception that ends a verb, and the message for a mistyped word."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class Failure(Exception):
    """A verb failed. ``message`` is one line that says what is wrong and what to do, ``more`` are further such lines.
    ``code`` is the exit code.
    """

    def __init__(self, message: str, code: int = 1, more: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.lines = (message, *more)


LIKENESS = 0.7
"""Two words at least this similar are taken for a word and its mistyping. `donw` and `down` are above it, `ps` and
`push` below.
"""


def mistyped(word: str, known: list[str], what: str, meant: str = "") -> str:
    """The message for a word that is not one of ``known``. ``meant`` is the known word that it stands for, if there is
    one; behind a colon it may have a reason.
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
