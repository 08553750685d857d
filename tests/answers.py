"""Malformed answers of HTTP servers, byte by byte, and what Go's net/http makes of each: what Go accepts, we accept;
what Go refuses, we refuse.

The verdicts are those of Go 1.26.8; ``tests/peers/test_nethttp.py`` asks the machine's Go again.
"""

from __future__ import annotations

from dataclasses import dataclass

OK = b"HTTP/1.1 200 OK\r\n"
BODY = b"Content-Length: 4\r\n\r\nbody"
CHUNKS = b"\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """The bytes that a server answers before it hangs up, and the body that Go reads from them; None if Go refuses."""

    name: str
    raw: bytes
    body: bytes | None = b"body"
    method: str = "GET"
    status: int = 200


CASES = [
    # ------------------------------------------------------------------------------------ how long the body is
    Case("plain", OK + BODY),
    Case("length beside chunked", OK + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n" + CHUNKS),
    Case("chunked, then a wrong length", OK + b"Transfer-Encoding: chunked\r\nContent-Length: 9\r\n" + CHUNKS),
    Case(
        "chunked beside a length that is none",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: x\r\n" + CHUNKS,
        None,
    ),
    Case("two equal lengths", OK + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody"),
    Case(
        "three equal lengths, with blanks",
        OK + b"Content-Length: 4\r\nContent-length:4 \r\ncontent-length:\t4\r\n\r\nbody",
    ),
    Case("two lengths", OK + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody", None),
    Case(
        "two lengths beside chunked",
        OK + b"Content-Length: 4\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n" + CHUNKS,
        None,
    ),
    Case("two equal lengths of other digits", OK + b"Content-Length: 4\r\nContent-Length: 04\r\n\r\nbody", None),
    Case("a list of lengths", OK + b"Content-Length: 4, 4\r\n\r\nbody", None),
    Case("a length with zeros", OK + b"Content-Length: 0004\r\n\r\nbody"),
    Case("a length with a sign", OK + b"Content-Length: +4\r\n\r\nbody", None),
    Case("a negative length", OK + b"Content-Length: -1\r\n\r\nbody", None),
    Case("no length in the length", OK + b"Content-Length:\r\n\r\nbody", None),
    Case("a length of 2^63", OK + b"Content-Length: 9223372036854775808\r\n\r\nbody", None),
    Case("a length of 5,000 digits", OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nbody", None),
    Case("other digits than ASCII's", OK + "Content-Length: ٤\r\n\r\nbody".encode(), None),
    Case("no length at all", OK + b"\r\nbody"),
    Case("more than the length", OK + BODY + b" and more"),
    Case("more than the length, another answer", OK + BODY + OK + BODY),
    Case("less than the length", OK + b"Content-Length: 5\r\n\r\nbody", None),
    Case("chunked twice", OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" + CHUNKS, None),
    Case("chunked, in capitals", OK + b"Transfer-Encoding: CHUNKED\r\n" + CHUNKS),
    Case("gzip, chunked", OK + b"Transfer-Encoding: gzip, chunked\r\n" + CHUNKS, None),
    Case("identity", OK + b"Transfer-Encoding: identity\r\n" + BODY, None),
    Case("chunked in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n" + BODY),
    Case("more than the chunks", OK + b"Transfer-Encoding: chunked\r\n" + CHUNKS + b"more"),
    Case(
        "chunks with extensions and blanks",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nbo\r\n2 \r\ndy\r\n0\r\n\r\n",
    ),
    Case(
        "chunks and trailers",
        OK + b"Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 1\r\n\r\n",
    ),
    Case("a trailer that may not be", OK + b"Trailer: Content-Length\r\nTransfer-Encoding: chunked\r\n" + CHUNKS, None),
    Case("chunks without an end", OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n", None),
    # ------------------------------------------------------------------------------------ answers without a body
    Case("HEAD", OK + b"Content-Length: 4\r\n\r\n", b"", "HEAD"),
    Case("HEAD with a body", OK + BODY, b"", "HEAD"),
    Case("HEAD with a body of unknown length", OK + b"\r\n<html>", b"", "HEAD"),
    Case("HEAD, chunked", OK + b"Transfer-Encoding: chunked\r\n" + CHUNKS, b"", "HEAD"),
    Case("HEAD with two equal lengths", OK + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\n", b"", "HEAD"),
    Case("HEAD with two lengths", OK + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n", None, "HEAD"),
    Case("204 with a body", b"HTTP/1.1 204 No Content\r\n" + BODY, b"", status=204),
    Case("204, chunked", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n" + CHUNKS, b"", status=204),
    Case("HEAD, 404 with a body", b"HTTP/1.1 404 Not Found\r\n" + BODY, b"", "HEAD", 404),
    # ------------------------------------------------------------------------------------ headers
    Case("a blank before the colon", OK + b"X-Mine : 1\r\nX Mine: 2\r\n" + BODY),
    Case("a length with a blank before its colon is none", OK + b"Content-Length : 2\r\n\r\nbody"),
    Case("a tab before the colon", OK + b"X-Mine\t: 1\r\n" + BODY, None),
    Case("a header without a colon", OK + b"nonsense\r\n" + BODY, None),
    Case("a header without a name", OK + b": 1\r\n" + BODY, None),
    Case("a name that is none", OK + "Ä: 1\r\n".encode() + BODY, None),
    Case("a name with brackets", OK + b"X(1): 1\r\n" + BODY, None),
    Case("a value of several lines", OK + b"X-Mine: a\r\n  b\r\n\tc\r\n" + BODY),
    Case("a length of several lines", OK + b"Content-Length:\r\n 4\r\n\r\nbody"),
    Case("a blank before the first header", OK + b" X-Mine: 1\r\n" + BODY, None),
    Case("a value that is no UTF-8", OK + b"X-Mine: \xff\xfe\r\n" + BODY),
    Case("a value with NUL", OK + b"X-Mine: a\0b\r\n" + BODY, None),
    Case("a value with CR", OK + b"X-Mine: a\rb\r\n" + BODY, None),
    Case("a value with escapes", OK + b"X-Mine: \x1b[31m\r\n" + BODY, None),
    Case("lines without CR", b"HTTP/1.1 200 OK\nContent-Length: 4\n\nbody"),
    Case("lines with two CR", b"HTTP/1.1 200 OK\r\r\nContent-Length: 4\r\r\n\r\nbody", None),
    Case("a header of 40 KiB", OK + b"X-Mine: " + b"x" * (40 << 10) + b"\r\n" + BODY),
    Case("a header of 900 KiB", OK + b"X-Mine: " + b"x" * (900 << 10) + b"\r\n" + BODY),
    Case("1,000 headers", OK + b"".join(b"X-%d: 1\r\n" % number for number in range(1000)) + BODY),
    Case("Upgrade", OK + b"Connection: Upgrade\r\nUpgrade: h2\r\n" + BODY),
    Case("close, and more", OK + b"Connection: close\r\n" + BODY + b"more"),
    Case("no end", OK + b"Content-Length: 4\r\n", None),
    # ------------------------------------------------------------------------------------ the first line
    Case("no reason", b"HTTP/1.1 200\r\n" + BODY),
    Case("blanks before the status", b"HTTP/1.1   200 OK\r\n" + BODY),
    Case("a reason that is no UTF-8", b"HTTP/1.1 200 \xff\xfe\r\n" + BODY),
    Case("a reason of 60 KB", b"HTTP/1.1 200 " + b"x" * 60_000 + b"\r\n" + BODY),
    Case("HTTP/1.0", b"HTTP/1.0 200 OK\r\n" + BODY),
    Case("HTTP/1.0 without a length", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nbody"),
    Case("HTTP/2.0, by its words", b"HTTP/2.0 200 OK\r\n" + BODY),
    Case("HTTP/11", b"HTTP/11 200 OK\r\n" + BODY, None),
    Case("ICY", b"ICY 200 OK\r\n" + BODY, None),
    Case("a status of four digits", b"HTTP/1.1 2000 OK\r\n" + BODY, None),
    Case("a status that is none", b"HTTP/1.1 abc OK\r\n" + BODY, None),
    Case("a blank line before", b"\r\n" + OK + BODY, None),
    Case("an empty answer", b"", None),
    Case("no HTTP", b"220 mail.test ESMTP\r\n", None),
    Case("100 before", b"HTTP/1.1 100 Continue\r\n\r\n" + OK + BODY),
    Case(
        "103 before, with headers and a length",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 3\r\n\r\n" + OK + BODY,
    ),
]

BEYOND = [
    Case("a header of 2 MiB", OK + b"X-Mine: " + b"x" * (2 << 20) + b"\r\n" + BODY),
    Case("a header without an end", OK + b"X-Mine: " + b"x" * (4 << 20), None),
    Case("20,000 headers", OK + b"X: 1\r\n" * 20_000 + BODY),
    Case("100,000 interim answers", b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000 + OK + BODY),
]
"""Go accepts some of these. They are beyond our limits, and are refused as soon as that shows."""
