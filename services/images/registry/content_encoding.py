"""Content-Encoding: bodies that were compressed for the transfer or for storage. We ask for ``identity``. Some servers
send compressed bodies nevertheless (object stores that store them so, proxies), and containerd decodes these.

The codings are those that containerd knows, in RFC 9110's words: gzip, deflate and zstd; several are undone from the
last to the first. A body that ends before its coding does is an error. The reader limits the decoded bytes; the
compressed ones are limited here, since a coding can have any number of bytes that decode to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

PIECE = 1 << 18
"""Decoded bytes in one piece (for zstd: of what fits into ``_ZSTD_FED``)."""

_ZSTD_FED = 1 << 7
"""Compressed bytes that are fed at once: all that they decode to comes out, and four of them may decode to 128 KiB."""
_ZSTD_WINDOW = 8 << 20
"""Bytes of a frame's window, which is the memory that it takes: RFC 9659 allows no more in a Content-Encoding."""
_MOST = 2
"""Nested codings; real servers use one."""
_SPENT = 64 << 10
"""Compressed bytes beyond twice the wanted ones."""


class Undecodable(Exception):
    """Why a body cannot be decoded. ``early``: it ended before its coding; another attempt may succeed."""

    def __init__(self, why: str, *, early: bool = False) -> None:
        super().__init__(why)
        self.early = early


def codings(header: str) -> list[str]:
    """The codings in a Content-Encoding header, in the order in which they were applied, without ``identity``."""
    return [each for each in re.split(r"[ \t,]+", header.lower()) if each not in ("", "identity")]


class Decoder:
    """Undoes the codings ``names`` of a body of which at most ``most`` bytes are wanted; Undecodable. It is fed with
    the bytes that arrive, and gives pieces until all are decoded.
    """

    def __init__(self, names: Iterable[str], most: int) -> None:
        self._names = list(names)
        if unknown := [name for name in self._names if name not in _CODINGS]:
            raise Undecodable(f"unsupported Content-Encoding {unknown[0][:40]}")
        if len(self._names) > _MOST:
            raise Undecodable(f"{len(self._names)} Content-Encodings one in the other")
        self._coders = [_CODINGS[name]() for name in reversed(self._names)]
        self._left = 2 * most + _SPENT
        self._pieces: Iterator[bytes] = iter(())

    def feed(self, data: bytes) -> None:
        """Feed more bytes, once :meth:`piece` has given everything."""
        self._left -= len(data)
        if self._left < 0:
            raise Undecodable(f"{', '.join(self._names)} of more bytes than what is in it")
        pieces: Iterator[bytes] = iter((data,))
        for coder in self._coders:
            pieces = _decoded(coder, pieces)
        self._pieces = pieces

    def piece(self) -> bytes:
        """The next decoded bytes; empty if more must be fed."""
        return next(self._pieces, b"")

    def end(self) -> None:
        """Note the end of the body."""
        for coder in self._coders:
            if not coder.ended:
                raise Undecodable(f"{coder.name} that ends early", early=True)


class _Coder(Protocol):
    name: str

    @property
    def ended(self) -> bool:
        """Whether everything that was begun is complete."""
        ...

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """The bytes that ``data`` decodes to; Undecodable."""
        ...


def _decoded(coder: _Coder, source: Iterator[bytes]) -> Iterator[bytes]:
    for data in source:
        yield from coder.pieces(data)


class _Gzip:
    """Any number of members, one after the other."""

    name = "gzip"

    def __init__(self) -> None:
        self._member = self._next()

    @staticmethod
    def _next() -> Any:
        from isal import isal_zlib  # imported when needed

        return isal_zlib.decompressobj(wbits=31)

    @property
    def ended(self) -> bool:
        return bool(self._member.eof)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._member.eof:
                if not data:
                    return
                self._member = self._next()
            out = _inflated(self.name, self._member, data)
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if out:
                yield out
            elif not data:
                return


class _Deflate:
    """RFC 9110 means zlib's format. Some servers send the raw stream inside it, which is what Go reads; the first two
    bytes tell. Bytes after the end are ignored.
    """

    name = "deflate"

    def __init__(self) -> None:
        self._head = b""
        self._stream: Any = None

    @property
    def ended(self) -> bool:
        return self._stream is not None and bool(self._stream.eof)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            self._head += data
            if len(self._head) < 2:
                return
            from isal import isal_zlib

            data, zlib = self._head, self._head[0] & 0x0F == 8 and int.from_bytes(self._head[:2]) % 31 == 0
            self._stream = isal_zlib.decompressobj(wbits=15 if zlib else -15)
        while not self._stream.eof:
            out = _inflated(self.name, self._stream, data)
            data = self._stream.unconsumed_tail
            if out:
                yield out
            elif not data:
                return


class _Zstd:
    """Any number of frames."""

    name = "zstd"

    def __init__(self) -> None:
        import zstandard  # 1 MB: imported when needed

        self._error = zstandard.ZstdError
        self._frames = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame = self._frames.decompressobj()

    @property
    def ended(self) -> bool:
        return bool(self._frame.eof)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_FED):
            fed = data[start : start + _ZSTD_FED]
            while fed:
                if self._frame.eof:
                    self._frame = self._frames.decompressobj()
                try:
                    out = self._frame.decompress(fed)
                except self._error as error:
                    raise Undecodable(f"damaged zstd ({error})") from None
                fed = self._frame.unused_data if self._frame.eof else b""
                for at in range(0, len(out), PIECE):
                    yield out[at : at + PIECE]


def _inflated(name: str, stream: Any, data: bytes) -> bytes:
    from isal import isal_zlib

    try:
        out: bytes = stream.decompress(data, PIECE)
    except isal_zlib.error as error:  # type: ignore[misc]
        raise Undecodable(f"damaged {name} ({error})") from None
    return out


_CODINGS: dict[str, type[_Gzip | _Deflate | _Zstd]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "zstd": _Zstd,
}
