r"""Go's regular expressions (RE2 syntax) on Python's ``re``: what containerd's filters mean by ``~=``.

A pattern is rewritten token by token, so that it means here what it means there: ``$`` is the end of the text and not of its last line, classes such as
``\d`` are ASCII, ``[[:alpha:]]``, ``\z``, ``\Q...\E`` and flags in mid-pattern work, and what RE2 refuses (look-around, back references,
possessive repeats) is refused. Not supported: ``\pL`` and its kind, ``(?U)``. Unlike RE2's, the time a match takes is not bounded by the
length of the text.
"""

from __future__ import annotations

import re
from functools import lru_cache

_POSIX = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": r"\x00-\x7f", "blank": r"\t ", "cntrl": r"\x00-\x1f\x7f", "digit": "0-9",
    "graph": "!-~", "lower": "a-z", "print": " -~", "punct": r"!-/:-@\[-`{-~", "space": r"\t\n\v\f\r ", "upper": "A-Z", "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_CONTROL = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}
_REPEAT = re.compile(r"\{(\d+)(,(\d*))?\}")
_FLAGS = re.compile(r"\(\?([ims]*)(-[ims]+)?([:)])")
_NAME = re.compile(r"\(\?P?<[A-Za-z_0-9]+>")


@lru_cache(maxsize=256)
def compile(pattern: str) -> re.Pattern[str]:  # noqa: A001 - regexp.compile, as re.compile
    """``pattern`` as a Python pattern whose ``search`` is Go's MatchString; ValueError if it is none (``re.error`` is not raised)."""
    try:
        return re.compile(_Translator(pattern).translate(), re.ASCII if pattern.isascii() else re.UNICODE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"error parsing regexp {pattern!r}: {error}") from None


class _Translator:
    """One pass over a Go pattern. ``groups`` holds, for each open group, the flag groups that were opened inside it."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.out: list[str] = []
        self.groups: list[list[str]] = [[]]
        self.multiline = [False]  # for each open group

    def translate(self) -> str:
        while self.at < len(self.pattern):
            self._token()
        if len(self.groups) > 1:
            raise self._error("missing closing )")
        self._close_flags()
        return "".join(self.out)

    def _error(self, why: str) -> ValueError:
        return ValueError(f"error parsing regexp: {why}: `{self.pattern}`")

    def _token(self) -> None:
        char = self.pattern[self.at]
        if char == "\\":
            self.out.append(self._escape(in_class=False))
        elif char == "[":
            self.out.append(self._class())
        elif char == "(":
            self._open()
        elif char == ")":
            if len(self.groups) == 1:
                raise self._error("unexpected )")
            self._close_flags()
            self.groups.pop()
            self.multiline.pop()
            self.out.append(")")
            self.at += 1
        elif char == "|":
            self._close_flags()
            self.out.append("|" + "".join(self.groups[-1]))
            self.at += 1
        elif char == "$":
            self.out.append("(?:$)" if self.multiline[-1] else r"(?:\Z)")
            self.at += 1
        elif char in "*+?{":
            self._repeat()
        else:
            self.out.append("(?:^)" if char == "^" else "." if char == "." else re.escape(char))
            self.at += 1

    def _repeat(self) -> None:
        count = _REPEAT.match(self.pattern, self.at)
        if self.pattern[self.at] == "{" and not count:
            self.out.append(r"\{")  # not a repeat there, though {,3} is one in Python
            self.at += 1
            return
        text = count[0] if count else self.pattern[self.at]
        if count and max(int(count[1]), int(count[3] or 0)) > 1000:
            raise self._error("invalid repeat count")
        self.at += len(text)
        if self.pattern.startswith("?", self.at):
            text += "?"
            self.at += 1
        if self.pattern[self.at:self.at + 1] in ("*", "+", "?") or _REPEAT.match(self.pattern, self.at):
            raise self._error("invalid nested repetition operator")
        self.out.append(text)

    def _open(self) -> None:
        if not self.pattern.startswith("(?", self.at):
            self._push("(?:", 1)
        elif name := _NAME.match(self.pattern, self.at):
            self._push("(?:", len(name[0]))
        elif (flags := _FLAGS.match(self.pattern, self.at)) and (flags[1] or flags[2] or flags[3] == ":"):
            text = f"(?{flags[1]}{flags[2] or ''}:"
            multiline = (self.multiline[-1] or "m" in flags[1]) and "m" not in (flags[2] or "")
            if flags[3] == ":":
                self._push(text, len(flags[0]))
                self.multiline[-1] = multiline
            else:  # to the end of the group around it
                self.groups[-1].append(text)
                self.multiline[-1] = multiline
                self.out.append(text)
                self.at += len(flags[0])
        else:
            raise self._error("invalid or unsupported Perl syntax")

    def _push(self, text: str, length: int) -> None:
        self.out.append(text)
        self.groups.append([])
        self.multiline.append(self.multiline[-1])
        self.at += length

    def _close_flags(self) -> None:
        self.out.append(")" * len(self.groups[-1]))

    def _escape(self, *, in_class: bool) -> str:
        """What follows a backslash, as Python writes it."""
        char = self.pattern[self.at + 1:self.at + 2]
        self.at += 2
        if not char:
            raise self._error("trailing backslash at end of expression")
        if char in "dDwW":
            return _PERL[char] if in_class else f"[{_PERL[char]}]"
        if char == "s":
            return r"\t\n\f\r " if in_class else r"[\t\n\f\r ]"
        if char == "S":
            if in_class:
                return r"\S\v"
            return r"[^\t\n\f\r ]"
        if char in _CONTROL:
            return re.escape(_CONTROL[char])
        if char == "x":
            number = re.compile(r"\{([0-9A-Fa-f]{1,6})\}|([0-9A-Fa-f]{2})").match(self.pattern, self.at)
            if not number or int(number[1] or number[2], 16) > 0x10FFFF:
                raise self._error("invalid escape sequence")
            self.at += len(number[0])
            return re.escape(chr(int(number[1] or number[2], 16)))
        if char in "01234567":
            number = re.compile(r"[0-7]{1,3}").match(self.pattern, self.at - 1)
            assert number
            if char != "0" and len(number[0]) == 1:
                raise self._error("invalid escape sequence")  # a back reference
            self.at += len(number[0]) - 1
            return re.escape(chr(int(number[0], 8)))
        if not in_class:
            if char in "AbB":
                return rf"(?:\{char})"  # which may be repeated there, but not bare in Python
            if char == "z":
                return r"(?:\Z)"
            if char == "Q":
                end = self.pattern.find(r"\E", self.at)
                literal = self.pattern[self.at:] if end < 0 else self.pattern[self.at:end]
                self.at = len(self.pattern) if end < 0 else end + 2
                return re.escape(literal)
        if char.isascii() and not char.isalnum():
            return re.escape(char)
        raise self._error("invalid escape sequence")

    def _class(self) -> str:
        out = ["["]
        self.at += 1
        if self.pattern.startswith("^", self.at):
            out.append("^")
            self.at += 1
        first = True
        while first or not self.pattern.startswith("]", self.at):
            if self.at >= len(self.pattern):
                raise self._error("missing closing ]")
            char = self.pattern[self.at]
            if char == "[" and (named := re.compile(r"\[:(\^?)(\w+):\]").match(self.pattern, self.at)):
                if named[2] not in _POSIX or named[1]:
                    raise self._error("invalid character class range")
                out.append(_POSIX[named[2]])
                self.at += len(named[0])
            elif char == "\\":
                out.append(self._escape(in_class=True))
            elif char == "-" and out[-1] != "-":
                out.append("-")
                self.at += 1
            else:
                out.append(re.escape(char))
                self.at += 1
            first = False
        self.at += 1
        return "".join([*out, "]"])


_PERL = {"d": "0-9", "w": "0-9A-Za-z_", "D": r"\x00-/:-\U0010ffff", "W": r"\x00-/:-@\[-\^`{-\U0010ffff"}
