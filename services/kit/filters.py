"""containerd's filter language: List calls take filters to select containers, images, blobs, snapshots and events.

A filter is a comma separated list of selectors, all of which must match. Of several filters one must match::

    name==foo                        the field has this value
    labels."a label.with/odd"!=x     it has another, or none
    name~=^docker                    a regular expression (Go's) is found in its value
    labels.team                      it is present
    name==foo,labels.team            both

A field path is names separated by dots, each a word or a quoted string. A value is a quoted string, or runs to the next
comma or blank. Quotes are ``"`` with Go's escapes; after ``~=`` also ``/`` and ``|``. As in containerd, a regular
expression that does not compile matches nothing and is no error (the log has the reason, once for each request), and an
absent field counts as empty for ``!=`` and ``~=``.

Filters are read and matched in loops that serve all clients. So those of a request are bounded: :data:`CHARACTERS`,
:data:`SELECTORS`, :data:`EXPRESSIONS`, and the work of a regular expression by :mod:`services.kit.regexp`. A service
reads them in slices (:func:`parsed`).

The caller says which fields a thing has, by an *adaptor*: a function from a field path to its value and whether it is
present.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from services.kit import errors, regexp
from services.kit.slices import Lane, Steps

log = logging.getLogger(__name__)

Adaptor = Callable[[Sequence[str]], tuple[str, bool]]

CHARACTERS = 32 << 10
"""Characters of all filters of a request together. containerd limits only the size of a message."""

SELECTORS = 2048
EXPRESSIONS = 64
"""Conditions, and conditions with ``~=``, that all filters of a request may have together."""


@dataclass(frozen=True, slots=True)
class Selector:
    """One condition on one field. ``operator`` is empty for presence."""

    path: tuple[str, ...]
    operator: Literal["", "==", "!=", "~="] = ""
    value: str = ""
    expression: regexp.Expression | None = field(default=None, compare=False)
    """The compiled ``value``, after ``~=``; None matches nothing."""

    def match(self, adaptor: Adaptor) -> bool:
        """Whether the thing behind ``adaptor`` fulfils the condition."""
        value, present = adaptor(self.path)
        if self.operator == "":
            return present
        if self.operator == "==":
            return present and value == self.value
        if self.operator == "!=":
            return value != self.value
        if self.expression is None:
            return False
        try:
            return self.expression.found_in(value)
        except ValueError as error:
            log.debug("filter: %s", error)
            return False


@dataclass(frozen=True, slots=True)
class Filter:
    """``alternatives`` of selectors that must all match. No alternatives match everything.

    Equal conditions are evaluated once, and values of one field are looked up together: ``name==a``, ``name==b`` and
    two thousand more take as long as one.
    """

    alternatives: tuple[tuple[Selector, ...], ...] = ()
    _values: Mapping[tuple[str, ...], Collection[str]] = field(default_factory=dict, compare=False, repr=False)
    """By field, its accepted values, from alternatives with a single ``==`` condition."""
    _others: Collection[tuple[Selector, ...]] = field(default=(), compare=False, repr=False)

    @property
    def cost(self) -> int:
        """The worst cost of a match for each character of a field, in steps of some nanoseconds: the number of its
        selectors and the sizes of their regular expressions.
        """
        return len(self._values) + sum(
            1 + (selector.expression.size if selector.expression else 0)
            for selectors in self._others
            for selector in selectors
        )

    def match(self, adaptor: Adaptor) -> bool:
        """Whether the thing behind ``adaptor`` is selected."""
        return (
            not self.alternatives
            or self._is_value(adaptor)
            or any(all(s.match(adaptor) for s in selectors) for selectors in self._others)
        )

    def matching(self, adaptor: Adaptor) -> Steps[bool]:
        """:meth:`match`, one condition at a time."""
        if not self.alternatives or self._is_value(adaptor):
            return True
        for selectors in self._others:
            for selector in selectors:
                yield
                if not selector.match(adaptor):
                    break
            else:
                return True
        return False

    def _is_value(self, adaptor: Adaptor) -> bool:
        for path, values in self._values.items():
            value, present = adaptor(path)
            if present and value in values:
                return True
        return False

    def __call__(self, adaptor: Adaptor) -> bool:
        return self.match(adaptor)


def _made(alternatives: tuple[tuple[Selector, ...], ...]) -> Generator[None, None, Filter]:
    """The filter of these alternatives, in small steps: two thousand conditions take some milliseconds."""
    values: dict[tuple[str, ...], set[str]] = {}
    others: dict[tuple[int, ...], tuple[Selector, ...]] = {}
    numbers: dict[Selector, int] = {}
    """Equal conditions have one number: it takes a microsecond to compare two."""
    for selectors in alternatives:
        found: dict[int, Selector] = {}
        for selector in selectors:
            found[numbers.setdefault(selector, len(numbers))] = selector
            yield
        if len(found) == 1 and selector.operator == "==":
            values.setdefault(selector.path, set()).add(selector.value)
        else:
            others[tuple(found)] = tuple(found.values())
    return Filter(alternatives, values, tuple(others.values()))


ALWAYS = Filter()


def parse(sources: Iterable[str]) -> Filter:
    """The filter that matches what any of ``sources`` matches. No sources, or an empty one among them, match
    everything.

    InvalidArgument shows where a source is wrong, in containerd's words, or which limit they exceed.
    """
    reading = _reading(sources)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


async def parsed(sources: Iterable[str], lane: Lane) -> Filter:
    """:func:`parse` for a loop that serves other clients too: at their bounds, filters take 20 ms and more to read."""
    reading, piece = _reading(sources), lane.slice()
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if piece.over():
            await piece.next()


def _reading(sources: Iterable[str]) -> Generator[None, None, Filter]:
    """:func:`parse`, in small steps."""
    sources = sources if isinstance(sources, Sequence) else list(sources)
    if len(sources) > SELECTORS:  # a request may have a million; no texts are made of them
        raise errors.InvalidArgument(f"filters: {len(sources)} filters, at most {SELECTORS}")
    sources = list(sources)
    if sum(map(len, sources)) > CHARACTERS:
        raise errors.InvalidArgument(f"filters: {sum(map(len, sources))} characters, at most {CHARACTERS}")
    found = []
    for source in sources:
        found.append((yield from _Parser(source).reading()) if source else ())
        yield
    parsed = tuple(found)
    selectors = [selector for alternative in parsed for selector in alternative]
    if len(selectors) > SELECTORS:
        raise errors.InvalidArgument(f"filters: {len(selectors)} selectors, at most {SELECTORS}")
    if any(selector.operator == "~=" for selector in selectors):
        parsed = yield from _compiling(parsed)
    return (yield from _made(parsed))


def _compiling(parsed: tuple[tuple[Selector, ...], ...]) -> Generator[None, None, tuple[tuple[Selector, ...], ...]]:
    """The alternatives with their regular expressions compiled. An invalid expression stays None, and matches
    nothing.
    """
    patterns = [selector.value for alternative in parsed for selector in alternative if selector.operator == "~="]
    if len(patterns) > EXPRESSIONS:
        raise errors.InvalidArgument(f"filters: {len(patterns)} regular expressions, at most {EXPRESSIONS}")
    if sum(map(len, patterns)) > regexp.EXPRESSION:
        raise errors.InvalidArgument(
            f"filters: regular expressions of {sum(map(len, patterns))} characters, at most {regexp.EXPRESSION}"
        )
    steps = regexp.STEPS // len(patterns)
    expressions: dict[str, regexp.Expression | None] = {}
    for pattern in dict.fromkeys(patterns):
        try:
            expressions[pattern] = yield from regexp.compiling(pattern, steps)
        except ValueError as error:
            log.error("filter: %.1000s", error)
            expressions[pattern] = None
    return tuple(
        tuple(
            replace(selector, expression=expressions[selector.value]) if selector.operator == "~=" else selector
            for selector in alternative
        )
        for alternative in parsed
    )


def of_map(path: Sequence[str], values: Mapping[str, str]) -> tuple[str, bool]:
    """Look up the rest of a field path as one name with dots: this is how ``labels.io.cri-containerd.kind`` finds its
    label. For adaptors.
    """
    key = ".".join(path)
    return (values[key], True) if key in values else ("", False)


_END = ""
_SHOWN = 2048
"""Characters of a long filter that an error shows around the wrong place."""
_FIELD = re.compile(r"[A-Za-z0-9_]+")
_NAMES = re.compile(r"(?:\.[A-Za-z0-9_]+)+")
_SPACES = re.compile(r"[^\S\x1c-\x1f]+")
"""Go's white space is Unicode's. Python's also has the separators U+001C to U+001F."""
_VALUE = re.compile(r"[!-+\--~\w]+")
"""The ASCII characters, letters and digits that a value may have. A few others are allowed too."""
_PLAIN = re.compile(r"([A-Za-z0-9_]++(?:\.[A-Za-z0-9_]++)*+)(?:([=!~]=)([A-Za-z0-9_][!-+\--~]*+))?+(?=,|\Z)")
"""A selector without quotes, blanks and letters beyond ASCII. Nearly every selector is one."""
_OPERATOR = re.compile(r"[=!~]+")
_ESCAPED = r"x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}"
_LITERAL = {quote: re.compile(rf"(?:[^{quote}\\\n\0\ufffd]|\\(?:[abfnrtv\\{quote}]|{_ESCAPED}))*+") for quote in '"/|'}
"""By quote: what a well-formed literal may contain."""
_UNTIL = {quote: re.compile(rf"[^{quote}\n\0\ufffd]*") for quote in '"/|'}
"""By quote: the rest of a malformed literal."""
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


class _IllegalError(Exception):
    """The scanner met a character that begins no token. The text of the exception is the reason."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: Literal["end", "quoted", "value", "field", "separator", "operator", "illegal", "other"]
    at: int
    text: str = ""


class _Parser:
    """A recursive descent over one source. The scanner's state is ``at`` (the next character) and ``wants_value`` (the
    last token was an operator).
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0
        self.wants_value = False

    def reading(self) -> Generator[None, None, tuple[Selector, ...]]:
        """Parse the source, in small steps."""
        selectors = [self._plain() or (yield from self._selector())]
        while (char := self._peek()) != _END:
            if char != ",":
                # containerd shows an invalid character as the replacement character
                raise self._error(self.at, f"unexpected input: {'�' if char == chr(0) else char}")
            self._scan()
            selectors.append(self._plain() or (yield from self._selector()))
            yield
        return tuple(selectors)

    # ---------------------------------------------------------------- grammar

    def _plain(self) -> Selector | None:
        """A plain selector, in one step; None if the selector is not plain."""
        found = _PLAIN.match(self.source, self.at)
        if found is None:
            return None
        self.at = found.end()
        path, operator, value = found.groups()
        return Selector(tuple(path.split(".")), operator or "", value or "")  # type: ignore[arg-type]

    def _selector(self) -> Generator[None, None, Selector]:
        path = [(yield from self._field())]
        while self._peek() == ".":
            if run := _NAMES.match(self.source, self.at):
                self.at = run.end()
                path += run[0][1:].split(".")
                continue
            self._scan()
            path.append((yield from self._field()))
            yield
        if self._peek() in (",", _END):
            return Selector(tuple(path))
        token = self._scan()
        if token.kind == "illegal":
            raise self._error(token.at, token.text)
        if token.kind != "operator":
            raise self._error(token.at, 'expected an operator ("=="|"!="|"~=")')
        if token.text not in ("==", "!=", "~="):
            raise self._error(token.at, f'unsupported operator "{token.text}"')
        value = yield from self._value(any_quote=token.text == "~=")
        return Selector(tuple(path), token.text, value)  # type: ignore[arg-type]

    def _field(self) -> Steps[str]:
        token = self._scan()
        if token.kind == "field":
            return token.text
        if token.kind == "quoted":
            return (yield from self._unquote(token, any_quote=False))
        raise self._error(token.at, token.text if token.kind == "illegal" else "expected field or quoted")

    def _value(self, *, any_quote: bool) -> Steps[str]:
        token = self._scan()
        if token.kind in ("value", "field"):
            return token.text
        if token.kind == "quoted":
            return (yield from self._unquote(token, any_quote=any_quote))
        raise self._error(token.at, token.text if token.kind == "illegal" else "expected value or quoted")

    def _unquote(self, token: _Token, *, any_quote: bool) -> Steps[str]:
        if not any_quote and token.text[0] != '"':
            raise self._error(token.at, "invalid quote encountered")
        try:
            return (yield from _unquoted(token.text[1:-1]))
        except ValueError:
            raise self._error(token.at, "unquoting failed: quote syntax error") from None

    def _error(self, at: int, why: str) -> errors.InvalidArgument:
        where = self.source
        if at < len(where):
            before, after = where[:at], where[at + 1 :]
            if len(where) > _SHOWN:  # an error travels in a header
                before, after = before[-_SHOWN // 2 :], after[: _SHOWN // 2]
            where = f"{before} >|{where[at]}|< {after}"
        elif len(where) > _SHOWN:
            where = where[-_SHOWN:]
        return errors.InvalidArgument(f"filters: parse error: [{where}]: {why}")

    # ---------------------------------------------------------------- scanner

    def _peek(self) -> str:
        return self.source[self.at : self.at + 1]

    def _next(self) -> str:
        char = self._peek()
        self.at += len(char)
        if char == "\0":
            raise _IllegalError("unexpected null")
        if char == "�":
            raise _IllegalError("rune error")
        return char

    def _scan(self) -> _Token:
        self._skip(_SPACES)
        start = self.at
        try:
            kind = self._scan_one()
        except _IllegalError as error:
            return _Token("illegal", start, str(error))
        return _Token(kind, start, self.source[start : self.at])

    def _scan_one(self) -> Literal["end", "quoted", "value", "field", "separator", "operator", "other"]:
        char = self._next()
        if char == _END:
            return "end"
        if char in _LITERAL:
            self._scan_quoted(char)
            return "quoted"
        if char in ",.":
            self.wants_value = False
            return "separator"
        if char in "=!~":
            self._skip(_OPERATOR)
            self.wants_value = True
            return "operator"
        if self.wants_value:
            self._skip(_VALUE)
            while (char := self._peek()) != _END and _is_value(char):
                self.at += 1
                self._skip(_VALUE)
            self.wants_value = False
            return "value"
        if _FIELD.match(char):
            self._skip(_FIELD)
            return "field"
        return "other"

    def _skip(self, run: re.Pattern[str]) -> None:
        if found := run.match(self.source, self.at):
            self.at = found.end()

    def _scan_quoted(self, quote: str) -> None:
        """Scan to the closing quote. An illegal escape is reported only there, unless the literal never ends. The first
        reason counts.
        """
        why = ""
        try:
            self._skip(_LITERAL[quote])
            while (char := self._next()) != quote:
                if char in ("", "\n"):
                    raise _IllegalError("quoted literal not terminated")
                if char == "\\":
                    why = why or self._scan_escape(quote)
                self._skip((_UNTIL if why else _LITERAL)[quote])
        except _IllegalError as error:
            raise _IllegalError(why or str(error)) from None
        if why:
            raise _IllegalError(why)

    def _scan_escape(self, quote: str) -> str:
        """Scan an escape. The result is what is wrong with it. The character that ends a malformed escape is not
        consumed.
        """
        char = self._peek()
        if char and (char in "abfnrtv\\" or char == quote):
            self.at += 1
            return ""
        if char and char in "01234567":
            digits, base = 3, 8
        elif char and char in _HEX_DIGITS:
            digits, base = _HEX_DIGITS[char], 16
            self.at += 1
        else:
            if char not in ("", "\n"):
                self._next()
            return "illegal escape sequence"
        for _ in range(digits):
            if not _is_digit(self._peek(), base):
                return "illegal numeric escape sequence"
            self.at += 1
        return ""


def _is_digit(char: str, base: int) -> bool:
    return char != _END and char in "0123456789abcdefABCDEF"[: 8 if base == 8 else None]


@lru_cache(1024)
def _is_value(char: str) -> bool:
    return char not in (",", "�") and not _SPACES.match(char) and unicodedata.category(char)[0] in "LMNPS"


_SIMPLE = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}


def _unquoted(text: str) -> Steps[str]:
    r"""The string that the inside of a quoted literal means. ValueError if it is out of range; the scanner has checked
    the syntax.

    ``\x`` and octal escapes are bytes, ``\u`` and ``\U`` characters. Bytes that are not UTF-8 become lone surrogates,
    which are equal to nothing that a message can have.
    """
    if "\\" not in text:
        return text
    data, at = text.encode(errors="surrogatepass"), 0
    done, meant = [], dict[bytes, bytes]()
    for piece in _ESCAPES.finditer(data):
        parts = _ESCAPE.split(piece[0])  # every second part is an escape
        meant |= {escape: _meant(escape) for escape in dict.fromkeys(parts[1::2]) if escape not in meant}
        parts[1::2] = [meant[escape] for escape in parts[1::2]]
        done += parts
        at = piece.end()
        yield
    return b"".join((*done, data[at:])).decode(errors="surrogateescape")


_ESCAPE = re.compile(rf"(\\(?:{_ESCAPED}|.))".encode(), re.DOTALL)
_ESCAPES = re.compile(rf"(?:[^\\]*+\\(?:{_ESCAPED}|.)){{1,200}}+".encode(), re.DOTALL)
"""Two hundred escapes take some tens of microseconds."""


def _meant(escape: bytes) -> bytes:
    """The bytes that an escape means; ValueError if there are none."""
    letter, digits = escape[1:2].decode(), escape[2:]
    if letter in _SIMPLE:
        return bytes((_SIMPLE[letter],))
    if letter == "x":
        return bytes((int(digits, 16),))
    if letter in _HEX_DIGITS:
        number = int(digits, 16)
        return ("�" if 0xD800 <= number < 0xE000 else chr(number)).encode()  # ValueError past the last character
    return bytes((int(escape[1:], 8),)) if digits else escape[1:]  # ValueError past 255
