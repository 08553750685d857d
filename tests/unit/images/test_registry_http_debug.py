"""HTTP requests as text for a client, without secrets."""

from __future__ import annotations

import pytest

from services.images.registry.http_debug import BODY_LIMIT, NO_DEBUG, Exchange, HttpDebug, address


def shown(private: bool = False) -> tuple[Exchange, list[str]]:
    lines = list[str]()
    return Exchange(HttpDebug(lambda text: lines.extend(text.splitlines())), private=private), lines


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://r.test/v2/a/manifests/1?ns=docker.io", "https://r.test/v2/a/manifests/1?ns=docker.io"),
        (
            "https://s3.test/blob?X-Amz-Signature=abc&X-Amz-Date=1",
            "https://s3.test/blob?X-Amz-Signature=<redacted>&X-Amz-Date=<redacted>",
        ),
        (
            "https://r.test/v2/a/blobs/uploads/1?_state=abc&digest=sha256%3A12",
            "https://r.test/v2/a/blobs/uploads/1?_state=<redacted>&digest=sha256:12",
        ),
        ("https://user:word@r.test/#f", "https://r.test/"),
        (
            "https://t.test/token?scope=repository%3Aa%3Apull%2Cpush&account=me",
            "https://t.test/token?scope=repository:a:pull,push&account=<redacted>",
        ),
    ],
)
def test_of_a_url_only_known_parameters_are_shown(url: str, text: str) -> None:
    """Other parameters may be signatures."""
    assert address(url) == text


def test_nothing_that_identifies_the_client_is_shown() -> None:
    """Headers of hosts.toml and of the client, and the bodies of requests, are left out."""
    exchange, lines = shown()
    exchange.request(
        "PUT",
        "https://r.test/x",
        [
            ("Accept", "a/b"),
            ("Authorization", "Bearer abc"),
            ("authorization", "abc"),
            ("X-Team", "blue"),
            ("Cookie", "c=1"),
        ],
        body=True,
    )
    number = lines[0].partition(">")[0]
    assert lines == [
        f"{number}> {line}"
        for line in (
            "PUT https://r.test/x",
            "Accept: a/b",
            "Authorization: Bearer <redacted>",
            "authorization: <redacted>",
            "X-Team: <redacted>",
            "Cookie: <redacted>",
            "(a body, which is not shown)",
        )
    ]


def test_of_an_answer_secrets_are_left_out() -> None:
    """Cookies and the targets of redirects are left out."""
    exchange, lines = shown()
    exchange.answer(
        307,
        "Temporary Redirect",
        {
            "Set-Cookie": "s=1",
            "Location": "https://s3.test/b?sig=1",
            "X-Auth-Token": "t",
            "Link": '</v2/x?n=1&state=2>; rel="next"',
            "WWW-Authenticate": 'Bearer realm="https://t.test/token"',
            "ETag": "e",
        },
    )
    assert [line.partition("< ")[2] for line in lines] == [
        "307 Temporary Redirect",
        "Set-Cookie: <redacted>",
        "Location: https://s3.test/b?sig=<redacted>",
        "X-Auth-Token: <redacted>",
        'Link: </v2/x?n=1&state=<redacted>>; rel="next"',
        'WWW-Authenticate: Bearer realm="https://t.test/token"',
        "ETag: e",
    ]


def test_text_bodies_without_secrets_are_shown() -> None:
    """Their length is limited, and no character moves a cursor."""
    exchange, lines = shown()
    exchange.body(b'{"a":\n"\x1b[2J"}', "application/json")
    exchange.body(b"x" * (BODY_LIMIT + 5), "text/plain")
    exchange.body(b"\x00\x01", "application/octet-stream")
    exchange.body(b"", "text/plain")
    private, hidden = shown(private=True)
    private.body(b'{"token": "t"}', "application/json")
    assert [line.partition("< ")[2] for line in lines] == [
        '{"a":',
        '"\\x1b[2J"}',
        "x" * BODY_LIMIT,
        "(5 bytes more)",
        "(2 bytes of application/octet-stream)",
    ]
    assert not hidden


def test_connections_are_shown_by_their_phases() -> None:
    """Only clients that asked for it get them."""
    lines = list[str]()
    exchange = Exchange(HttpDebug(connections=lines.append), private=False)
    exchange.request("GET", "https://r.test", [], body=False)
    exchange.answer(200, "OK", {})
    exchange.failed("x")
    exchange.body(b"x", "text/plain")
    exchange.connection("r.test", "192.0.2.1:443", {"dns": 0.001, "first_byte": 0.25}, reused=False)
    exchange.connection("r.test", "", {}, reused=False)
    assert [line.partition("= ")[2] for line in lines] == [
        "connection to r.test at 192.0.2.1:443: new; dns 1.0 ms, first byte 250.0 ms\n",
        "connection to r.test: no answer\n",
    ]
    quiet = Exchange(NO_DEBUG, private=False)
    quiet.connection("r.test", "", {}, reused=True)
    quiet.failed("x")
