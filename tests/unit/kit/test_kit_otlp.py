"""kit.otlp: the environment variables that it reads, and the times of its retries."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from services.kit import exporting, otlp

PREFIX = "OTEL_EXPORTER_OTLP_"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset all variables of the machine that runs the tests."""
    import os

    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("endpoint", "insecure", "wanted"),
    [
        ("http://box:4317", "", ("box", 4317, "box:4317", False)),
        ("http://box", "", ("box", 4317, "box", False)),
        ("http://box:1/some/path", "", ("box", 1, "box:1", False)),
        ("http://box:1", "false", ("box", 1, "box:1", False)),
        ("https://box:1", "true", ("box", 1, "box:1", True)),
        ("https://box", "", ("box", 443, "box", True)),
        ("http://user:word@[::1]:1", "", ("::1", 1, "[::1]:1", False)),
        ("box:1", "true", ("box", 1, "box:1", False)),
        ("box:1", "TRUE", ("box", 1, "box:1", False)),
        ("box:1", "", ("box", 1, "box:1", True)),
        ("unix:/run/x.sock", "", ("/run/x.sock", 0, "localhost", False)),
        ("unix:///run/x.sock", "", ("/run/x.sock", 0, "localhost", False)),
    ],
)
def test_where_grpc_finds_the_collector(
    endpoint: str, insecure: str, wanted: tuple[str, int, str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheme decides about TLS; without a scheme INSECURE does."""
    monkeypatch.setenv(PREFIX + "ENDPOINT", endpoint)
    monkeypatch.setenv(PREFIX + "INSECURE", insecure)
    place = otlp.place_of_grpc()
    assert (place.host, place.port, place.authority, place.tls is not None) == wanted


@pytest.mark.parametrize(
    ("name", "endpoint", "wanted"),
    [
        ("ENDPOINT", "http://box:4318", ("box", 4318, "/v1/traces")),
        ("ENDPOINT", "http://box:4318/", ("box", 4318, "/v1/traces")),
        ("ENDPOINT", "https://box/otel/", ("box", 443, "/otel/v1/traces")),
        ("TRACES_ENDPOINT", "http://box:4318", ("box", 4318, "/")),
        ("TRACES_ENDPOINT", "http://box/mine?x=1", ("box", 80, "/mine?x=1")),
    ],
)
def test_where_http_posts_to(
    name: str, endpoint: str, wanted: tuple[str, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of the signal is added to the address for all signals, and to no other address."""
    monkeypatch.setenv(PREFIX + name, endpoint)
    place, path = otlp.place_of_http()
    assert (place.host, place.port, path) == wanted


def test_the_variable_for_traces_is_stronger(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one counts as unset."""
    monkeypatch.setenv(PREFIX + "ENDPOINT", "http://all:1")
    monkeypatch.setenv(PREFIX + "TRACES_ENDPOINT", "http://traces:1")
    assert otlp.place_of_grpc().host == "traces"
    monkeypatch.setenv(PREFIX + "TRACES_ENDPOINT", "")
    assert otlp.place_of_grpc().host == "all"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROTOCOL", "http/json"),
        ("TRACES_PROTOCOL", "grpc-web"),
        ("COMPRESSION", "deflate"),
        ("TIMEOUT", "soon"),
        ("ENDPOINT", "ftp://box:1"),
        ("ENDPOINT", "http://"),
        ("ENDPOINT", "http://box:port"),
        ("ENDPOINT", "http://box:0"),
    ],
)
def test_errors_name_the_setting(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a process that cannot start names the variable and its value."""
    monkeypatch.setenv(PREFIX + "ENDPOINT", "http://box:1")
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(ValueError, match=f"^{PREFIX}{name}={value}: "):
        otlp.configured("test")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("xx", "it names no port: say HOST:PORT, or http:// or https:// with a host"),
        ("[::1]", "it names no port: say HOST:PORT, or http:// or https:// with a host"),
        ("localhost:99999", "its port is no number from 1 to 65535"),
        ("localhost:", "its port is no number from 1 to 65535"),
        ("localhost:http", "its port is no number from 1 to 65535"),
        ("http://localhost:0", "its port is no number from 1 to 65535"),
        (":4317", "it names no host"),
        ("https://:4317", "it names no host"),
        ("ftp://box:1", "it is not an http:// or https:// address"),
        ("unix:", "the path of a unix socket has 1 to 107 bytes"),
        ("unix:///" + "x" * 107, "the path of a unix socket has 1 to 107 bytes"),
    ],
)
def test_an_address_that_cannot_be_is_said_with_what_is_wrong(
    value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`splitd config check` says so, before the node loses its traces."""
    monkeypatch.setenv(PREFIX + "ENDPOINT", value)
    monkeypatch.setenv(PREFIX + "PROTOCOL", "grpc")
    with pytest.raises(ValueError, match=f"^{re.escape(f'{PREFIX}ENDPOINT={value}: {why}')}$"):
        otlp.configured("test")
    assert any(why in line for line in exporting.check())


def test_headers_that_are_wrong_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are in headers, and the error goes to the log."""
    monkeypatch.setenv(PREFIX + "ENDPOINT", "http://box:1")
    monkeypatch.setenv(PREFIX + "HEADERS", "authorization=secret%0A")
    monkeypatch.setenv(PREFIX + "TRACES_HEADERS", "authorization=secret%00")
    with pytest.raises(ValueError, match=f"^{PREFIX}TRACES_HEADERS: ") as caught:
        otlp.configured("test")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["a=b,secret", "a=b,se cret=x", "a=b,=secret"])
def test_a_header_without_a_name_is_named_by_its_place(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a token, too, whose comma is not in URL encoding."""
    monkeypatch.setenv(PREFIX + "ENDPOINT", "http://box:1")
    monkeypatch.setenv(PREFIX + "HEADERS", value)
    with pytest.raises(ValueError, match=f"^{PREFIX}HEADERS: its entry 2 is not NAME=VALUE$"):
        otlp.configured("test")


def test_http_knows_no_unix_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The specification has none either."""
    monkeypatch.setenv(PREFIX + "ENDPOINT", "unix:/x.sock")
    monkeypatch.setenv(PREFIX + "PROTOCOL", "http/protobuf")
    with pytest.raises(ValueError, match=f"^{PREFIX}ENDPOINT=unix:/x.sock: it is not an http:// or https:// address$"):
        otlp.configured("test")


@pytest.mark.parametrize("name", ["CERTIFICATE", "CLIENT_CERTIFICATE"])
def test_a_certificate_that_is_not_there_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own error would not name the file."""
    monkeypatch.setenv(PREFIX + "ENDPOINT", "https://box:1")
    monkeypatch.setenv(PREFIX + name, str(tmp_path / "none.pem"))
    with pytest.raises(ValueError, match=f"^{PREFIX}{name}={tmp_path}/none.pem: "):
        otlp.configured("test")


class Refusing:
    """A collector that is busy each time; ``times`` are the times of the requests, on a clock that advances only in
    pauses.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.times: list[float] = []

    def send(self, request: bytes, timeout: float) -> bytes:
        self.times.append(self.now)
        raise otlp.SendError("busy", again=True)

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(("chance", "times"), [(0.0, [0, 0.4, 1.2]), (0.5, [0, 0.5, 1.5]), (1.0, [0, 0.6, 1.8])])
def test_pauses_grow_until_the_time_is_over(chance: float, times: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses are half a second, then one, each give or take a fifth; a third would end after 2.8 s at the earliest,
    too late for a timeout of 2.5.
    """
    monkeypatch.setattr(random, "uniform", lambda least, most: least + (most - least) * chance)
    collector = Refusing()
    exporter = otlp.Exporter(collector, 2.5, {}, clock=lambda: collector.now, pause=collector.pause)
    assert not exporter.export([])
    assert collector.times == pytest.approx(times)
