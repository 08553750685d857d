"""JSON from outside, read by the rules of Go's encoding/json: registries, other clients and containerd itself write and
read their documents by these.

A *shape* says what a document should be, as a Go type does: ``Struct({"size": INTEGER, "annotations": MapOf(TEXT)})``.
:func:`read` gives dicts, lists, texts and numbers of that shape, and nothing else:

- Names of a struct's fields match exactly, or else without regard to case; keys of maps are what they are. Fields that
  the shape does not have are skipped, whatever they are.
- Of a field that is there twice the last one wins: structs and maps are merged, of lists the elements, one by one.
- ``null`` is no value: lists, maps and what is :class:`Optional` become None, anything else stays as it was.
- An integer is one of 64 bits, written as one: 1.0 and 1e3 are none. ``NaN`` is no JSON.
- What is no UTF-8, and half of a surrogate pair, becomes U+FFFD. A byte order mark is refused.
- Arrays and objects are nested 10,000 deep at most. Nearly all documents are flatter than ``SHALLOW``: json's C scanner
  reads them, which recurses; the others are read here, without recursion.

Beyond Go, a document has at most ``VALUES`` values: how many bytes it has its reader bounds, how long reading it takes
depends on them.

A field that is not there is not in the dict, or holds None: ``found.get("layers") or ()``. Where a number is out of
range, a text is a list and the like, and where the document is no JSON, :class:`Malformed` says so in words that follow
upon the name of the document: ``manifest sha256:...: layers[3].size: a string instead of an integer``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, Final, Protocol, TypeVar

from services.kit import errors

T = TypeVar("T")

DEPTH = 10_000
"""Levels of arrays and objects, as in Go."""

SHALLOW = 100
"""So deep a document may be for a scanner that recurses."""

VALUES = 250_000
"""Values of a document, so that nobody waits long while it is read: an index of 10,000 manifests has half as many."""

DEEP_VALUES = 50_000
"""Values of a document that is deeper than ``SHALLOW``: the other scanner needs a microsecond for each."""


class Malformed(ValueError):
    """Why a document cannot be read, and ``where`` in it."""

    def __init__(self, why: str, where: str = "") -> None:
        super().__init__(f"{where}: {why}" if where else why)
        self.why = why
        self.where = where

    def within(self, place: str) -> Malformed:
        """The same, of a document in which this one is at ``place``: a name, or brackets."""
        return Malformed(
            self.why, place + (self.where if not self.where or self.where.startswith("[") else f".{self.where}")
        )


class Shape(Protocol):
    """What a value should be."""

    def take(self, old: Any, value: Any) -> Any:
        """``value``, as it was scanned, in the place of ``old``, which is None if there was nothing. Malformed."""
        ...


# ---------------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True, slots=True)
class _Text:
    def take(self, old: Any, value: Any) -> Any:
        if type(value) is str:
            return value
        if value is None:
            return old or ""
        raise _mismatch(value, "a string")


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer of so many values."""

    least: int
    most: int

    def take(self, old: Any, value: Any) -> Any:
        if type(value) is int and self.least <= value <= self.most:
            return value
        if value is None:
            return old or 0
        if type(value) is int or type(value) is float:
            raise Malformed(f"a number that is no integer from {self.least} to {self.most}")
        raise _mismatch(value, "an integer")


@dataclass(frozen=True, slots=True)
class _Number:
    def take(self, old: Any, value: Any) -> Any:
        if type(value) is int or type(value) is float:
            return value
        if value is None:
            return old or 0
        raise _mismatch(value, "a number")


@dataclass(frozen=True, slots=True)
class _Boolean:
    def take(self, old: Any, value: Any) -> Any:
        if type(value) is bool:
            return value
        if value is None:
            return old or False
        raise _mismatch(value, "a boolean")


@dataclass(frozen=True, slots=True)
class _Base64:
    def take(self, old: Any, value: Any) -> Any:
        if type(value) is str:
            try:
                return base64.b64decode(value.translate(_NO_LINES), validate=True)
            except (binascii.Error, ValueError):  # ValueError: a letter beyond ASCII
                raise Malformed("a string that is not in base64") from None
        if type(value) is list:
            return bytes(_BYTES.take(list(old or ()), value))
        if value is None:
            return None
        raise _mismatch(value, "a string in base64")


@dataclass(frozen=True, slots=True)
class _Anything:
    def take(self, old: Any, value: Any) -> Any:
        return value


TEXT: Final = _Text()
INTEGER: Final = Integer(-(1 << 63), (1 << 63) - 1)
UINT32: Final = Integer(0, (1 << 32) - 1)
NUMBER: Final = _Number()
"""An integer or another number."""
BOOLEAN: Final = _Boolean()
BASE64: Final = _Base64()
"""Bytes."""
ANYTHING: Final = _Anything()
"""Whatever it is, unread: maybe very deep, and with numbers of any size."""


class _Slice(list[Any]):
    """A list that was longer once: Go keeps the elements ``beyond`` its end, and a longer list that comes later is
    laid over them.
    """

    beyond: list[Any]


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of values of one shape."""

    element: Shape

    def take(self, old: Any, value: Any) -> Any:
        if value is None:
            return None
        if type(value) is not list:
            raise _mismatch(value, "a list")
        take, index = self.element.take, 0
        under = [*old, *old.beyond] if type(old) is _Slice else old or ()
        try:
            if not under:
                found = []
                for index, each in enumerate(value):  # noqa: B007 the error names it
                    found.append(take(None, each))
                return found
            laid = _Slice()
            for index, each in enumerate(value):
                laid.append(take(under[index] if index < len(under) else None, each))
        except Malformed as error:
            raise error.within(f"[{index}]") from None
        if not laid:
            return []
        laid.beyond = [*under[len(laid) :]]
        return laid


@dataclass(frozen=True, slots=True)
class MapOf:
    """Values of one shape by keys of any name."""

    element: Shape

    def take(self, old: Any, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise _mismatch(value, "an object")
        take, found, key = self.element.take, dict(old or ()), ""
        try:
            for key, each in value.pairs if type(value) is _Repeated else value.items():
                found[key] = take(None, each)
        except Malformed as error:
            raise error.within(f"[{_quoted(key)}]") from None
        return found


@dataclass(frozen=True, slots=True)
class Struct:
    """Fields by name, in ASCII."""

    fields: Mapping[str, Shape]
    _folded: dict[str, str] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._folded.update({_fold(name): name for name in self.fields})

    def take(self, old: Any, value: Any) -> Any:
        found: dict[str, Any] = {} if old is None else old
        if value is None:
            return found
        if not isinstance(value, dict):
            raise _mismatch(value, "an object")
        fields, name = self.fields, ""
        try:
            for key, each in value.pairs if type(value) is _Repeated else value.items():
                name = key if key in fields else self._folded.get(_fold(key), "")
                if name:
                    found[name] = fields[name].take(found.get(name), each)
        except Malformed as error:
            raise error.within(name) from None
        return found


@dataclass(frozen=True, slots=True)
class Optional:
    """A value that may be null, which says that it is not there."""

    value: Shape

    def take(self, old: Any, value: Any) -> Any:
        return None if value is None else self.value.take(old, value)


_BYTES = ListOf(Integer(0, 255))
_NO_LINES = {ord("\r"): None, ord("\n"): None}


def _fold(name: str) -> str:
    """As Go folds names: by single letters only, among which are two beyond ASCII that are k and s."""
    return name.replace("\u017f", "s").lower()


def _mismatch(value: Any, wanted: str) -> Malformed:
    kinds = {str: "a string", bool: "a boolean", list: "a list", type(None): "null"}
    kind = kinds.get(type(value)) or ("an object" if isinstance(value, dict) else "a number")
    return Malformed(f"{kind} instead of {wanted}")


def _quoted(key: str) -> str:
    return json.dumps(key[:100], ensure_ascii=True)


# ---------------------------------------------------------------------------------------------- reading


def read(data: bytes, shape: Shape, *, mark: bool = False, first: bool = False, shallow: int = SHALLOW) -> Any:
    """The document ``data``, of this shape. ``mark``: it may begin with a byte order mark. ``first``: more may
    follow it, which is not read. ``shallow``: levels up to which json's scanner reads it. Malformed.
    """
    if mark:
        data = data.removeprefix(b"\xef\xbb\xbf")
    if first:
        data = data.partition(b"\0")[0]  # which is in no document
    return shape.take(None, _scanned(_decoded(data), shallow, first=first))


def document(
    data: bytes, shape: Shape, what: str, kind: type[errors.NodeError] = errors.Unknown, *, first: bool = False
) -> Any:
    """As :func:`read`; an error of ``kind`` that begins with ``what``, the name of the document and of who served
    it.
    """
    try:
        return read(data, shape, first=first)
    except Malformed as error:
        raise kind(f"{what}: {error}") from None


async def apart(size: int, work: Callable[[], T]) -> T:
    """What ``work`` makes of documents of so many bytes: at once, or, if they are large, in a thread, one after the
    other: nobody else waits, and of only one there are objects in memory.
    """
    if size < _LARGE:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_POOL, work)


_LARGE = 1 << 14
"""Bytes that may take some milliseconds to read, which they do where they are deep; nearly all documents have less."""

_POOL = ThreadPoolExecutor(1, "document")


def _decoded(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:  # each byte of what is cut short counts in Go, so errors="replace" will not do
        text = _ESCAPED_BYTES.sub(lambda found: "\ufffd" * len(found[0]), data.decode(errors="surrogateescape"))
    if ("\\ud" in text or "\\uD" in text) and "\0" not in text:
        # so that no backslash is one that is escaped
        text = _HALVES.sub(r"\\ufffd", text.replace("\\\\", "\0")).replace("\0", "\\\\")
    return text


_ESCAPED_BYTES = re.compile("[\udc80-\udcff]+")
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALVES = re.compile(f"{_HIGH}(?!{_LOW})|(?<!{_HIGH}){_LOW}")


def _scanned(text: str, shallow: int, *, first: bool) -> Any:
    if first:
        text = text[_SPACE.match(text).end() :]  # type: ignore[union-attr]
    opened = text.count("[") + text.count("{")
    if opened > shallow or opened + text.count(",") > VALUES:
        if text.count('"') - text.count('\\"') > 4 * VALUES:  # each value has a name, both in quotes
            raise Malformed(f"more than {VALUES} values")
        bare = _STRINGS.sub("", text)
        brackets = bare.encode().translate(None, _NOT_BRACKETS)
        values = brackets.count(b"[") + brackets.count(b"{") + bare.count(",")
        if values > VALUES:
            raise Malformed(f"{values} values, of which {VALUES} are read")
        depth = max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)
        if depth > shallow and values > DEEP_VALUES:
            raise Malformed(f"{values} values, of which {DEEP_VALUES} are read where they are {depth} levels deep")
        if depth > shallow:  # and where the text is no JSON, not deeper than it was before that
            return _Scanner(text).document(first=first)
    try:
        return _DECODER.raw_decode(text)[0] if first else _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _invalid(text, len(text) if error.msg.startswith("Unterminated") else error.pos) from None


_SPACE = re.compile(r"[ \t\n\r]*")
_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class _Repeated(dict[str, Any]):
    """An object with a name that is there more than once: in ``pairs`` they are all, in their order."""

    pairs: list[tuple[str, Any]]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = _Repeated(found)
    repeated.pairs = pairs
    return repeated


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= 20 else float(digits)


def _constant(_: str) -> Any:
    raise _Constant


class _Constant(Exception):
    """A number that only Python takes for JSON."""


class _Strict(json.JSONDecoder):
    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        try:
            return super().raw_decode(s, idx)
        except _Constant:
            raise json.JSONDecodeError(
                "Expecting value",
                s,
                _WORD_OF_PYTHON.search(_STRINGS.sub(_blank, s)).start(),  # type: ignore[union-attr]
            ) from None


_WORD_OF_PYTHON = re.compile("NaN|-?Infinity")


def _blank(found: re.Match[str]) -> str:
    return " " * (found.end() - found.start())


_DECODER = _Strict(object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)


def _invalid(text: str, at: int) -> Malformed:
    if at >= len(text):
        return Malformed("unexpected end of JSON input")
    return Malformed(f"invalid character {_quoted(text[at])} at byte {len(text[:at].encode())}")


class _Scanner:
    """A document read without recursion."""

    def __init__(self, text: str) -> None:
        self._text = text

    def document(self, *, first: bool) -> Any:
        """The value; one that nothing follows, unless it is only the ``first``."""
        found, end = self._value(self._space(0))
        if not first and (end := self._space(end)) < len(self._text):
            raise _invalid(self._text, end)
        return found

    def _value(self, at: int) -> tuple[Any, int]:
        text, space = self._text, self._space
        open_: list[tuple[list[Any], bool]] = []
        """The arrays (their elements) and objects (their pairs) that we are within, the innermost last."""
        while True:
            letter = text[at : at + 1]
            if letter in ("[", "{") and letter:
                if len(open_) >= DEPTH:
                    raise Malformed("exceeded max depth")
                is_object = letter == "{"
                open_.append(([], is_object))
                at = space(at + 1)
                if text[at : at + 1] != ("}" if is_object else "]"):
                    if is_object:
                        at = self._name(at, open_[-1][0])
                    continue
                found, at = self._closed(open_), at + 1
            else:
                found, at = self._scalar(at)
            while open_:  # the value is there: into what is it put, and does that end here too?
                values, is_object = open_[-1]
                if is_object:
                    values[-1] = (values[-1], found)
                else:
                    values.append(found)
                at = space(at)
                letter = text[at : at + 1]
                if letter == ",":
                    at = space(at + 1)
                    if is_object:
                        at = self._name(at, values)
                    break
                if letter != ("}" if is_object else "]"):
                    raise _invalid(text, at)
                found, at = self._closed(open_), at + 1
            else:
                return found, at

    def _closed(self, open_: list[tuple[list[Any], bool]]) -> Any:
        values, is_object = open_.pop()
        return _object(values) if is_object else values

    def _name(self, at: int, pairs: list[Any]) -> int:
        """Put a name into ``pairs``; the answer is where its value begins."""
        if self._text[at : at + 1] != '"':
            raise _invalid(self._text, at)
        name, at = self._scalar(at)
        at = self._space(at)
        if self._text[at : at + 1] != ":":
            raise _invalid(self._text, at)
        pairs.append(name)
        return self._space(at + 1)

    def _scalar(self, at: int) -> tuple[Any, int]:
        text = self._text
        if text[at : at + 1] == '"':
            try:
                return scanstring(text, at + 1, True)  # type: ignore[no-any-return]
            except json.JSONDecodeError as error:
                raise _invalid(text, len(text) if error.msg.startswith("Unterminated") else error.pos) from None
        if (found := _SCALAR.match(text, at)) is None:
            raise _invalid(text, at)
        if found.lastgroup == "word":
            return _WORDS[found[0]], found.end()
        return (_integer if found.lastgroup == "integer" else float)(found[0]), found.end()

    def _space(self, at: int) -> int:
        return _SPACE.match(self._text, at).end()  # type: ignore[union-attr]


_WORDS = {"true": True, "false": False, "null": None}
_SCALAR = re.compile(
    r"(?P<word>true|false|null)|(?P<other>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+))|(?P<integer>-?(?:0|[1-9][0-9]*))"
)
