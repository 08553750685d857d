"""Reads JSON from outside by the rules of Go's encoding/json, by which registries, other clients and containerd itself
write and read their documents.

A *shape* says what a document should be, as a Go type does: ``Struct({"size": INTEGER, "annotations": MapOf(TEXT)})``.
:func:`read` returns dicts, lists, texts and numbers of that shape, and nothing else:

- Names of a struct's fields match exactly, or else without regard to case. Keys of maps are unchanged. Fields that the
  shape does not have are skipped, whatever they are.
- If a field occurs twice, the last one wins: structs and maps are merged, lists element by element.
- ``null`` is no value: lists, maps and :class:`Optional` become None, anything else stays as it was.
- An integer has 64 bits, and is written as one: 1.0 and 1e3 are not integers. ``NaN`` is not JSON.
- Bytes that are not UTF-8, and half of a surrogate pair, become U+FFFD. A byte order mark is refused.
- Arrays and objects may be nested 10,000 deep. Nearly all documents are flatter than ``SHALLOW``: json's C scanner
  reads those, which recurses. The others are read here, without recursion.

Unlike in Go, a document has at most ``VALUES`` values. Its reader bounds its bytes, but the time to read it depends on
the number of its values.

A missing field is not in the dict, or is None: ``found.get("layers") or ()``. If a number is out of range, a text is a
list and the like, or the document is not JSON, :class:`Malformed` says so, in words that follow the name of the
document: ``manifest sha256:...: layers[3].size: a string instead of an integer``.
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
"""The depth up to which a scanner that recurses reads a document."""

VALUES = 250_000
"""Values of a document, so that reading it takes no long time. An index of 10,000 manifests has half as many."""

DEEP_VALUES = 50_000
"""Values of a document that is deeper than ``SHALLOW``: the other scanner needs a microsecond for each."""


class Malformed(ValueError):
    """A document cannot be read: ``why``, and ``where`` in it."""

    def __init__(self, why: str, where: str = "") -> None:
        super().__init__(f"{where}: {why}" if where else why)
        self.why = why
        self.where = where

    def within(self, place: str) -> Malformed:
        """The same error for an outer document, in which this one is at ``place``: a name, or brackets."""
        return Malformed(
            self.why, place + (self.where if not self.where or self.where.startswith("[") else f".{self.where}")
        )


class Shape(Protocol):
    """The expected form of a value."""

    def take(self, old: Any, value: Any) -> Any:
        """Convert the scanned ``value``. ``old`` is the value that it replaces, None if there was none. Raises
        Malformed.
        """
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
    """An integer from ``least`` to ``most``."""

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
"""Bytes, as text in base64."""
ANYTHING: Final = _Anything()
"""Any value, unchecked: it may be very deep, and have numbers of any size."""


class _Slice(list[Any]):
    """A list that was longer before. Go keeps the elements ``beyond`` its end, and a longer list that comes later is
    merged with them.
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
    """A value that may be null, which means that it is missing."""

    value: Shape

    def take(self, old: Any, value: Any) -> Any:
        return None if value is None else self.value.take(old, value)


_BYTES = ListOf(Integer(0, 255))
_NO_LINES = {ord("\r"): None, ord("\n"): None}


def _fold(name: str) -> str:
    """Fold a name as Go does: by single letters only, among which are two beyond ASCII that fold to k and s."""
    return name.replace("\u017f", "s").lower()


def _mismatch(value: Any, wanted: str) -> Malformed:
    kinds = {str: "a string", bool: "a boolean", list: "a list", type(None): "null"}
    kind = kinds.get(type(value)) or ("an object" if isinstance(value, dict) else "a number")
    return Malformed(f"{kind} instead of {wanted}")


def _quoted(key: str) -> str:
    return json.dumps(key[:100], ensure_ascii=True)


# ---------------------------------------------------------------------------------------------- reading


def read(data: bytes, shape: Shape, *, mark: bool = False, first: bool = False, shallow: int = SHALLOW) -> Any:
    """Read the document ``data`` as this shape. With ``mark`` it may begin with a byte order mark. With ``first``, more
    may follow, which is not read. ``shallow`` is the depth up to which json's scanner reads it. Raises Malformed.
    """
    if mark:
        data = data.removeprefix(b"\xef\xbb\xbf")
    if first:
        data = data.partition(b"\0")[0]  # no document has this byte
    return shape.take(None, _scanned(_decoded(data), shallow, first=first))


def document(
    data: bytes, shape: Shape, what: str, kind: type[errors.NodeError] = errors.Unknown, *, first: bool = False
) -> Any:
    """Like :func:`read`, but raise an error of ``kind`` that begins with ``what``: the name of the document and of the
    host that served it.
    """
    try:
        return read(data, shape, first=first)
    except Malformed as error:
        raise kind(f"{what}: {error}") from None


async def apart(size: int, work: Callable[[], T]) -> T:
    """The result of ``work``, which reads documents of ``size`` bytes in all. If they are large, it runs in a thread,
    one such work at a time. So other calls need not wait, and only one work's objects are in memory.
    """
    if size < _LARGE:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_POOL, work)


_LARGE = 1 << 14
"""Bytes that may take some milliseconds to read if the document is deep. Nearly all documents have fewer."""

_POOL = ThreadPoolExecutor(1, "document")


def _decoded(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:  # in Go each byte of a cut character counts, so errors="replace" does not do
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
            raise Malformed(f"{values} values, more than {VALUES}")
        depth = max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)
        if depth > shallow and values > DEEP_VALUES:
            raise Malformed(f"{values} values, more than {DEEP_VALUES} in a document {depth} levels deep")
        if depth > shallow:  # and if the text is not JSON, it is not deeper than this before the error
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
    """An object in which a name occurs more than once. ``pairs`` has all of them in order."""

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
    """A number that only Python accepts as JSON."""


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
    """Reads a document without recursion."""

    def __init__(self, text: str) -> None:
        self._text = text

    def document(self, *, first: bool) -> Any:
        """The value of the document. Unless only the ``first`` value is wanted, nothing may follow it."""
        found, end = self._value(self._space(0))
        if not first and (end := self._space(end)) < len(self._text):
            raise _invalid(self._text, end)
        return found

    def _value(self, at: int) -> tuple[Any, int]:
        text, space = self._text, self._space
        open_: list[tuple[list[Any], bool]] = []
        """The open arrays (their elements) and objects (their pairs), the innermost last."""
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
            while open_:  # the value is read: put it where it belongs, and see whether that ends here too
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
        """Put a name into ``pairs``; the result is the position of its value."""
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
