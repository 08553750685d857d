"""Header lists: HPACK (RFC 7541), HTTP/2's rules for them (RFC 9113, section 8), and gRPC's meaning of them.

The hpack library reads them, behind a cache; what clients mostly send is read here, by a shorter way. A block that
leaves the decoder's table unchanged means the same until something changes the table, and clients send the same few
blocks all the time. The finished :class:`Head`, checked and parsed, is cached, so it must not be changed.

Writing never uses the peer's table: every field is a literal, or in the static table. So an encoded list is a constant
that may be kept, joined to another, and sent on any connection; and our own blocks never spoil a peer's cache.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from hpack import Decoder as Hpack
from hpack import HPACKError, OversizedHeaderListError
from hpack.hpack import encode_integer
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from services.kit import memory
from services.kit.call import LEASE
from services.wire.frames import Code, ConnectionFault, StreamFault
from services.wire.limits import Limits

T = TypeVar("T")
Pairs = Sequence[tuple[bytes, bytes]]
Value = str | bytes

# ---------------------------------------------------------------------------------------------- writing

_NAMES: dict[bytes, int] = {}
_FIELDS: dict[tuple[bytes, bytes], int] = {}
for _index, (_name, _value) in enumerate(HeaderTable.STATIC_TABLE, 1):
    _NAMES.setdefault(_name, _index)
    _FIELDS.setdefault((_name, _value), _index)

TABLE_EMPTIED = b"\x20"
"""A dynamic table size update to 0. It is sent once if a peer shrinks the table, which we do not use."""


def field(name: bytes, value: bytes) -> bytes:
    """One header field: indexed if the static table has it, else a literal without indexing."""
    index = _FIELDS.get((name, value))
    if index is not None:
        return bytes((0x80 | index,))
    index = _NAMES.get(name)
    head = bytes(encode_integer(index, 4)) if index else b"\x00" + bytes(encode_integer(len(name), 7)) + name
    return head + bytes(encode_integer(len(value), 7)) + value


def block(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """An encoded header list."""
    return b"".join([field(name, value) for name, value in pairs])


def plain(pairs: Iterable[tuple[str, str]]) -> bytes:
    """The same as :func:`block` of :func:`metadata`, for a few short fields that differ in each call."""
    parts = []
    for name, value in pairs:
        key, data = name.encode(), value.encode("utf-8", "surrogateescape")
        short = len(key) < 127 and len(data) < 127
        parts.append(b"\0%c%b%c%b" % (len(key), key, len(data), data) if short else field(key, data))
    return b"".join(parts)


def metadata(pairs: Iterable[tuple[str, Value]]) -> list[tuple[bytes, bytes]]:
    """Metadata of gRPC as header fields: values of ``*-bin`` in base64 without padding."""
    fields = []
    for key, value in pairs:
        if key.endswith("-bin"):
            data = value.encode() if isinstance(value, str) else value
            fields.append((key.encode(), base64.b64encode(data).rstrip(b"=")))
        else:
            fields.append((key.encode(), value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value))
    return fields


def status(code: int, message: str = "", trailing: Iterable[tuple[str, Value]] = ()) -> bytes:
    """The block of a call's trailers."""
    pairs = [(b"grpc-status", b"%d" % code)]
    if message:
        pairs.append((b"grpc-message", quote(message, safe=_PRINTABLE, errors="replace").encode()))
    return block([*pairs, *metadata(trailing)])


_PRINTABLE = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")
"""Characters that grpc-message has unescaped (gRPC's PROTOCOL-HTTP2: Status-Message)."""

_UNITS = (("n", 1e-9), ("u", 1e-6), ("m", 1e-3), ("S", 1.0), ("M", 60.0), ("H", 3600.0))
_SECONDS = dict(_UNITS)


def timeout(seconds: float) -> bytes:
    """A grpc-timeout field: at most eight digits, rounded up."""
    for unit, size in _UNITS[1:]:
        if seconds < size * 1e8:
            return field(b"grpc-timeout", b"%d%s" % (max(1, math.ceil(seconds / size)), unit.encode()))
    return field(b"grpc-timeout", b"99999999H")


# ---------------------------------------------------------------------------------------------- reading


class Head:
    """A parsed header list: of a request, of a response, or trailers.

    ``headers`` are gRPC's metadata (the first value of each name; bytes for ``*-bin``). ``pairs`` are all fields except
    the pseudo-headers, as they came. ``problem`` is an error in the metadata that gRPC sees and HTTP/2 does not, so the
    call is answered with it. ``memory`` is for values that others derive from the head, without the trace context and
    the lease; it lives as long as the head is cached. ``lease`` is the value of that field, if it has one of its own:
    each command of a client has another.
    """

    __slots__ = (
        "authority",
        "code",
        "content_length",
        "content_type",
        "encoding",
        "headers",
        "lease",
        "memory",
        "message",
        "method",
        "pairs",
        "path",
        "problem",
        "scheme",
        "status",
        "timeout",
    )

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self.method = self.path = self.scheme = self.authority = ""
        self.status = 0
        self.content_length: int | None = None
        self.content_type = self.encoding = self.message = self.problem = ""
        self.timeout: float | None = None
        self.code: int | None = None
        self.pairs = pairs
        self.headers: dict[str, Value] = {}
        self.memory: dict[object, Any] = {}
        self.lease = ""
        for name, value in pairs:
            self._take(name.decode("ascii"), value)

    def _take(self, name: str, raw: bytes) -> None:
        value = raw.decode("utf-8", "surrogateescape")
        if name == "content-type":
            self.content_type = value
        elif name == "grpc-encoding":
            self.encoding = value
        elif name == "grpc-timeout":
            if not _TIMEOUT.fullmatch(value):
                self.problem = f"malformed grpc-timeout {value!r}"
            else:
                self.timeout = int(value[:-1]) * _SECONDS[value[-1]]
        elif name == "grpc-status":
            self.code = int(value) if value.isascii() and value.isdigit() and len(value) < 5 else 2
        elif name == "grpc-message":
            self.message = unquote(value, errors="replace")
        elif name not in self.headers:
            if name.endswith("-bin"):
                try:
                    self.headers[name] = _debase64(raw.split(b",")[0])
                except (binascii.Error, ValueError):
                    self.problem = f"malformed binary metadata {name}"
            else:
                self.headers[name] = value

    def encoded(self) -> bytes:
        """The fields, including the pseudo-header :status, in our own encoding."""
        found = self.memory.get("encoded")
        if found is None:
            pairs = [(b":status", b"%d" % self.status), *self.pairs] if self.status else self.pairs
            found = self.memory["encoded"] = block(pairs)
        assert isinstance(found, bytes)
        return found

    def without(self, name: str) -> bytes:
        """The same without the fields called ``name``."""
        pairs = [pair for pair in self.pairs if pair[0] != name.encode()]
        return block([(b":status", b"%d" % self.status), *pairs] if self.status else pairs)

    def within(self, context: Sequence[tuple[bytes, bytes]]) -> Head:
        """Another head, with further fields that only say which trace the call belongs to. ``memory`` is the same, so
        that what is derived from it does not depend on these fields.
        """
        found: Head = Head.__new__(Head)
        for name in Head.__slots__:
            setattr(found, name, getattr(self, name))
        found.pairs = [*self.pairs, *context]
        found.headers = {**{k.decode(): v.decode("utf-8", "surrogateescape") for k, v in context}, **self.headers}
        return found

    def leased(self, lease: tuple[bytes, bytes]) -> Head:
        """The head with that lease. All that differ in the lease have one ``memory``, apart from those without one."""
        found = self.within([lease])
        found.memory = self.memory.setdefault("leased", {})
        found.lease = lease[1].decode()
        return found

    def is_grpc(self) -> bool:
        """Whether its content-type is gRPC's, in any of its spellings."""
        return self.content_type == "application/grpc" or self.content_type.startswith(
            ("application/grpc+", "application/grpc;")
        )


_TIMEOUT = re.compile(r"[0-9]{1,8}[HMSmun]")


def _debase64(value: bytes) -> bytes:
    return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)


_SIZE_UPDATES = re.compile(rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]*[\x00-\x7f]){3}")
"""More of them than RFC 7541, section 4.2, has a use for. They cost the peer a byte each, and us much more."""
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\x00\r\n]")
_OF_CONNECTION = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})


def _checked(pairs: Pairs, pseudo: Sequence[bytes]) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """Pseudo-headers and other fields. StreamFault if RFC 9113, sections 8.2 and 8.3, calls the list malformed."""
    special: dict[bytes, bytes] = {}
    rest: list[tuple[bytes, bytes]] = []
    for name, value in pairs:
        if name[:1] == b":":
            if rest or name in special or name not in pseudo or _BAD_VALUE.search(value):
                raise StreamFault(Code.PROTOCOL_ERROR, f"pseudo-header {name.decode(errors='replace')} is out of place")
            special[name] = value
            continue
        if not _NAME.fullmatch(name) or _BAD_VALUE.search(value):
            raise StreamFault(Code.PROTOCOL_ERROR, "malformed header field")
        if name in _OF_CONNECTION or (name == b"te" and value != b"trailers"):
            raise StreamFault(Code.PROTOCOL_ERROR, f"header {name.decode()} belongs to HTTP/1.1")
        rest.append((name, value))
    return special, rest


def _content_length(head: Head) -> None:
    value = head.headers.pop("content-length", None)
    if value is None:
        return
    if not isinstance(value, str) or not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise StreamFault(Code.PROTOCOL_ERROR, "malformed content-length")
    head.content_length = int(value)


def request(pairs: Pairs) -> Head:
    """Check the header fields of a request, and return its head."""
    special, rest = _checked(pairs, (b":method", b":scheme", b":path", b":authority"))
    if not special.get(b":method") or not special.get(b":scheme") or not special.get(b":path"):
        raise StreamFault(Code.PROTOCOL_ERROR, "a request needs :method, :scheme and :path")
    head = Head(rest)
    head.method, head.scheme, head.path, head.authority = (
        special.get(name, b"").decode("utf-8", "replace") for name in (b":method", b":scheme", b":path", b":authority")
    )
    _content_length(head)
    return head


def response(pairs: Pairs) -> Head:
    """Check the header fields of a response, and return its head."""
    special, rest = _checked(pairs, (b":status",))
    code = special.get(b":status", b"")
    if len(code) != 3 or not code.isdigit():
        raise StreamFault(Code.PROTOCOL_ERROR, "a response needs a :status")
    head = Head(rest)
    head.status = int(code)
    _content_length(head)
    return head


def trailers(pairs: Pairs) -> Head:
    """Check the trailers of either side, and return them as a head."""
    return Head(_checked(pairs, ())[1])


class Decoder:
    """Decodes the header blocks that one connection receives."""

    __slots__ = ("__weakref__", "_cache", "_hpack", "_limits")

    def __init__(self, limits: Limits) -> None:
        _DECODERS.add(self)
        self._limits = limits
        self._hpack = Hpack(limits.header_list)
        self._cache: dict[tuple[Callable[[Pairs], Head], bytes], Head] = {}

    def forget(self) -> None:
        """Drop the cached blocks."""
        self._cache.clear()

    def __call__(self, kind: Callable[[Pairs], Head], encoded: bytes) -> Head:
        """Read a whole block as ``kind`` (:func:`request`, :func:`response`, :func:`trailers`).

        ConnectionFault if the block cannot be decoded, or is over a limit, since the two sides' tables then differ.
        StreamFault if its fields are malformed.
        """
        if kind is request and (at := encoded.rfind(_TRACEPARENT)) > 0:
            context = _context(encoded, at)
            if context is not None:  # only once: what is before it counts as any other field
                return self._whole(request, encoded[:at]).within(context)
        return self._whole(kind, encoded)

    def _whole(self, kind: Callable[[Pairs], Head], encoded: bytes) -> Head:
        key = (kind, encoded)
        head = self._cache.get(key)
        if head is not None:
            return head
        if _SIZE_UPDATES.match(encoded):
            raise ConnectionFault(Code.COMPRESSION_ERROR, "more than two table size updates in a block")
        table = self._hpack.header_table
        size, entries = table.maxsize, table.dynamic_entries
        count, newest = len(entries), entries[0] if entries else None
        try:
            pairs = self._short(encoded) or list(self._hpack.decode(encoded, raw=True))
        except OversizedHeaderListError:
            raise ConnectionFault(
                Code.ENHANCE_YOUR_CALM, f"header list over {self._limits.header_list} bytes"
            ) from None
        except (HPACKError, IndexError, ValueError) as error:
            raise ConnectionFault(Code.COMPRESSION_ERROR, str(error)) from None
        if len(pairs) > self._limits.header_count:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, f"more than {self._limits.header_count} header fields")
        # The table has changed if one of these has: entries enter at the front and leave at the end.
        changed = table.maxsize != size or len(entries) != count or (entries[0] if entries else None) is not newest
        if changed or len(self._cache) >= _CACHED:
            self._cache.clear()
        head = _head(kind, tuple([(bytes(name), bytes(value)) for name, value in pairs]))
        if not changed and len(encoded) <= _CACHEABLE:
            self._cache[key] = head
        return head

    def _short(self, encoded: bytes) -> list[tuple[bytes, bytes]] | None:
        """The fields of a block as clients send them: short, sound, and with no change of the table but new entries,
        for which none has to leave that the block refers to. None if it is another, which the library reads; then
        nothing has changed. This takes a fourth of the time.
        """
        table = self._hpack.header_table
        if table.maxsize > self._hpack.max_allowed_table_size:
            return None
        dynamic = table.dynamic_entries
        pairs: list[tuple[bytes, bytes]] = []
        new: list[tuple[bytes, bytes]] = []
        size = entered = at = 0
        oldest = -1
        try:
            while at < len(encoded):
                first = encoded[at]
                at += 1
                if first & 0x80:
                    index, most = first & 0x7F, 0x7F
                elif first & 0x40:
                    index, most = first & 0x3F, 0x3F
                elif first & 0x20:  # another size of the table
                    return None
                else:
                    index, most = first & 0x0F, 0x0F
                if index == most:  # it goes on in the next byte, and mostly ends there
                    if encoded[at] & 0x80:
                        return None
                    index += encoded[at]
                    at += 1
                if index > _STATIC:
                    back = index - _STATIC - 1 - len(new)
                    found = new[-1 - back - len(new)] if back < 0 else dynamic[back]
                    oldest = max(oldest, back)
                elif index:
                    found = HeaderTable.STATIC_TABLE[index - 1]
                elif first & 0x80:
                    return None
                if first & 0x80:
                    pair = found
                else:
                    if index:
                        name = found[0]
                    else:
                        name, at = _text(encoded, at)
                    value, at = _text(encoded, at)
                    pair = name, value
                    if first & 0x40:
                        new.append(pair)
                        entered += _ENTRY + len(name) + len(value)
                size += _ENTRY + len(pair[0]) + len(pair[1])
                pairs.append(pair)
        except (IndexError, HPACKError):
            return None
        if size > self._limits.header_list or entered > table.maxsize:
            return None
        over, left = table._current_size + entered - table.maxsize, len(dynamic)
        for name, value in reversed(dynamic) if over > 0 else ():
            over -= _ENTRY + len(name) + len(value)
            left -= 1
            if over <= 0:
                break
        if oldest >= left:
            return None
        for name, value in new:
            table.add(name, value)
        return pairs


def _text(encoded: bytes, at: int) -> tuple[bytes, int]:
    """The text that begins there, and where it ends. IndexError if it is not there, or is longer than 126 bytes."""
    length = encoded[at] & 0x7F
    begin, end = at + 1, at + 1 + length
    if length == 0x7F or end > len(encoded):
        raise IndexError
    text = encoded[begin:end]
    return (_plain(text) if encoded[at] & 0x80 else text), end


_plain = lru_cache(1024)(decode_huffman)
"""What a text says that is in Huffman's code. Clients say the same few, each by a new connection."""
_STATIC = HeaderTable.STATIC_TABLE_LENGTH
_ENTRY = 32
"""Bytes that an entry of the table, and a field of a list, count besides their own (RFC 7541, section 4.1)."""


def _head(kind: Callable[[Pairs], Head], pairs: tuple[tuple[bytes, bytes], ...]) -> Head:
    """The head of these fields, by whatever connection they came. A command is a new connection, and its table of names
    differs from call to call, but what it says is the same each time.
    """
    key = kind, pairs
    head = _HEADS.get(key)
    if head is None:
        if kind is request and (lease := _lease(pairs)) is not None:
            return _head(request, tuple([pair for pair in pairs if pair is not lease])).leased(lease)
        head = kind(pairs)
        if sum([len(name) + len(value) for name, value in pairs]) <= _CACHEABLE:
            if len(_HEADS) >= _HEADS_CACHED:
                del _HEADS[next(iter(_HEADS))]
            _HEADS[key] = head
    return head


def _lease(pairs: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, bytes] | None:
    """The field of a lease; None if there is none, or not just one of ordinary letters, where HTTP/2 allows it."""
    found = [at for at, (name, _) in enumerate(pairs) if name == _LEASE]
    if len(found) != 1 or not _PLAIN.fullmatch(pairs[found[0]][1]):
        return None
    return None if any(name[:1] == b":" for name, _ in pairs[found[0] :]) else pairs[found[0]]


_LEASE, _PLAIN = LEASE.encode(), re.compile(rb"[!-~]{1,126}")
_HEADS: dict[tuple[Callable[[Pairs], Head], Pairs], Head] = {}
_HEADS_CACHED = 512
memory.when_idle(_HEADS.clear)

_TRACEPARENT, _TRACESTATE = b"\x00\x0btraceparent\x37", b"\x00\x0atracestate"
"""The beginnings of these fields as :func:`plain` writes them. No other field can have them within: values have no zero
bytes.
"""


def _context(encoded: bytes, at: int) -> list[tuple[bytes, bytes]] | None:
    """The trace context with which a block ends that has a ``traceparent`` there; None if it goes on otherwise."""
    end = at + len(_TRACEPARENT) + 55
    found = [(b"traceparent", encoded[end - 55 : end])]
    if encoded.startswith(_TRACESTATE, end) and len(encoded) > (size := end + len(_TRACESTATE)):
        end = size + 1 + encoded[size]
        if encoded[size] > 126:
            return None
        found.append((b"tracestate", encoded[size + 1 : end]))
    return found if end == len(encoded) and not any(_BAD_VALUE.search(value) for _, value in found) else None


_CACHED, _CACHEABLE = 128, 1024
"""Blocks that a connection caches, and the length of the longest."""

_DECODERS: weakref.WeakSet[Decoder] = weakref.WeakSet()


def _forget() -> None:
    for decoder in _DECODERS:
        decoder.forget()


memory.when_idle(_forget)
memory.when_idle(_plain.cache_clear)

# makes urllib's table of escapes now; otherwise it would be made in the middle of a burst, and stay there
unquote("%20")
