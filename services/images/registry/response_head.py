"""The head of an answer (status line and headers), read as Go's net/http reads it, and rewritten for aiohttp's parser
(docs/adr/0008).

Registries are tested with docker, containerd and kubelets, all written in Go: answers that these accept exist in
practice. The rules are those of Go 1.26 (``net/http`` response.go and transfer.go, ``net/textproto`` reader.go). What
Go refuses is refused here, with words of ours:

- Lines end with CR LF or LF. A line that begins with a blank continues the header before it.
- A header with a blank before its colon has another name, which nothing looks for.
- Chunked is the only Transfer-Encoding, and precedes Content-Length. Several Content-Lengths must be equal. HTTP/1.0
  has no Transfer-Encoding.
- An answer to HEAD, and one with status 1xx, 204 or 304, has no body, whatever its headers say and whatever follows.

Stricter than Go, a head may have at most ``HEAD_LIMIT`` bytes and ``HEADERS`` lines. Go accepts 10 MiB, which no server
sends, and of which sixteen connections would fill our memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from services.images.registry.limits import HEAD_LIMIT, HEADERS

_REASON = 200
"""Bytes of the reason phrase that are kept."""

_END = re.compile(rb"\n\r?\n")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_STATUS = re.compile(rb"[1-9][0-9]{2}")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z ]+")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile(rb"[0-9]+")
_FRAMING = frozenset(
    {b"connection", b"content-length", b"transfer-encoding", b"trailer", b"upgrade", b"keep-alive", b"proxy-connection"}
)
"""Headers that say how the body ends, or what happens to the connection: rewritten."""
_BAD_TRAILERS = frozenset({b"transfer-encoding", b"trailer", b"content-length"})


class Malformed(ValueError):
    """Why it is no head of an answer."""


@dataclass(frozen=True, slots=True)
class Head:
    """``plain`` is the head for aiohttp's parser; ``body``: whether a body follows; ``length``: that of the body, if
    the head says it.
    """

    status: int
    plain: bytes
    body: bool
    length: int | None


def end_of(data: bytes | bytearray, start: int = 0) -> int:
    """The end of the head at the beginning of ``data``, -1 if it is not there yet; it is known not to be before
    ``start``. Malformed as soon as it cannot be a head.
    """
    if not data.startswith(b"HTTP/"[: len(data)]):
        raise Malformed(f"it begins with {_shown(bytes(data[:60]))}")
    found = _END.search(data, max(0, start - 2))
    end = found.end() if found is not None else -1
    if max(end, len(data) if end < 0 else 0) > HEAD_LIMIT:
        raise Malformed(f"its headers have more than {HEAD_LIMIT} bytes")
    return end


def read(head: bytes, *, to_head: bool) -> Head:
    """The head of an answer, given complete, with its blank line; ``to_head``: the request was HEAD. Malformed."""
    first, _, rest = head.partition(b"\n")
    version, status, reason = _status_line(first.removesuffix(b"\r"))
    kept, framing = (
        [b"HTTP/1.0 " if version == b"HTTP/1.0" else b"HTTP/1.1 ", b"%d " % status, _text(reason[:_REASON]), b"\r\n"],
        dict[bytes, list[bytes]](),
    )
    for name, value in _fields(rest):
        lower = name.lower()
        if lower in _FRAMING:
            framing.setdefault(lower, []).append(value)
        elif b" " not in name:
            kept += name, b": ", _text(value), b"\r\n"
    chunked = version > b"HTTP/1.0" and _is_chunked(framing.get(b"transfer-encoding", []))
    length = _length(framing.get(b"content-length", []))
    body = not to_head and status >= 200 and status not in (204, 304)
    if chunked and any(
        each.strip().lower() in _BAD_TRAILERS for value in framing.get(b"trailer", []) for each in value.split(b",")
    ):
        raise Malformed("its Trailer names a header that may not come later")
    if chunked and body:
        kept.append(b"Transfer-Encoding: chunked\r\n")
    elif length is not None and not chunked and (body or to_head):
        kept.append(b"Content-Length: %d\r\n" % length)
    tokens = {each.strip().lower() for value in framing.get(b"connection", []) for each in value.split(b",")}
    if version < b"HTTP/1.0" or b"close" in tokens:
        kept.append(b"Connection: close\r\n")
    elif version == b"HTTP/1.0" and b"keep-alive" in tokens:
        kept.append(b"Connection: keep-alive\r\n")
    kept.append(b"\r\n")
    return Head(status, b"".join(kept), body, length if body and not chunked else None)


def _status_line(line: bytes) -> tuple[bytes, int, bytes]:
    version, blank, rest = line.partition(b" ")
    code, _, reason = rest.lstrip(b" ").partition(b" ")
    if not blank or not _VERSION.fullmatch(version):
        raise Malformed(f"its first line is {_shown(line)}")
    if not _STATUS.fullmatch(code):
        raise Malformed(f"its status is {_shown(code)}")
    return version, int(code), reason


def _fields(rest: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The headers; those that continue on further lines are joined."""
    if rest.startswith((b" ", b"\t")):
        raise Malformed("its first header begins with a blank")
    if rest.count(b"\n") > HEADERS:
        raise Malformed(f"it has more than {HEADERS} lines of headers")
    lines = iter(rest.split(b"\n"))
    line = next(lines).removesuffix(b"\r")
    while line:
        following = next(lines, b"").removesuffix(b"\r")
        if b":" not in line:
            raise Malformed(f"a header without a colon: {_shown(line)}")
        joined = line.strip(b" \t")
        if following.startswith((b" ", b"\t")):
            pieces = [joined]
            while following.startswith((b" ", b"\t")):
                pieces.append(following.strip(b" \t"))
                following = next(lines, b"").removesuffix(b"\r")
            joined = b" ".join(pieces)
        name, _, value = joined.partition(b":")
        if not _NAME.fullmatch(name) or _NO_VALUE.search(value):
            raise Malformed(f"a malformed header: {_shown(joined)}")
        yield name, value.strip(b" \t")
        line = following


def _is_chunked(encodings: list[bytes]) -> bool:
    if not encodings:
        return False
    if len(encodings) > 1 or encodings[0].lower() != b"chunked":
        raise Malformed(f"its Transfer-Encoding is {_shown(b', '.join(encodings))}, and not chunked")
    return True


def _length(values: list[bytes]) -> int | None:
    if not values:
        return None
    if len(set(values)) > 1:
        raise Malformed(f"it has several Content-Lengths: {_shown(b', '.join(values))}")
    if not _LENGTH.fullmatch(values[0]) or len(values[0].lstrip(b"0")) > 19 or int(values[0]) >= 1 << 63:
        raise Malformed(f"its Content-Length is {_shown(values[0])}")
    return int(values[0])


def _text(value: bytes) -> bytes:
    """A value with invalid UTF-8 replaced: names and messages made of it are sent as UTF-8."""
    return value if value.isascii() else value.decode(errors="replace").encode()


def _shown(data: bytes) -> str:
    return repr(data[:60].decode("latin-1")).replace("\\x", "\\u00") + ("..." if len(data) > 60 else "")
