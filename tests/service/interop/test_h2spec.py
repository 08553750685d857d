"""Conformance of HTTP/2 and HPACK with their RFCs: h2spec on the wire, in its strict mode, on loopback."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.interop.programs import go_program, our_server

pytestmark = pytest.mark.once

CASES = 146
"""The number of cases of h2spec 2.2.1: its report must have them all."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with our_server("wire", tmp_path_factory.mktemp("h2spec")) as address:
        yield address


def test_h2spec_passes_in_full(address: str, tmp_path: Path) -> None:
    """Every case passes, and none is skipped."""
    host, _, port = address.rpartition(":")
    report, log = tmp_path / "report.xml", tmp_path / "log"
    with log.open("wb") as out:
        try:
            code = subprocess.run(
                [go_program("h2spec"), "-h", host, "-p", port, "--strict", "-o", "15", "-j", str(report)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=100,
                check=False,
            ).returncode
        # each case that gets no answer takes the 15 s that it is given, far more than a machine stops for
        except subprocess.TimeoutExpired:
            pytest.fail(f"h2spec takes too long:\n{log.read_text()}")
    assert report.exists(), log.read_text()
    cases = ElementTree.parse(report).getroot().findall(".//testcase")
    wrong = []
    for case in cases:
        if len(case):  # it has failed, or was skipped; the last line is what h2spec got
            *wanted, got = ["", *"".join(case.itertext()).strip().splitlines()][-10:]
            wrong.append(
                f"{case.get('package')} {case.get('classname')}: want {' or '.join(filter(None, wanted))}; got {got}"
            )
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
    assert len(cases) == CASES
    assert code == 0, log.read_text()


# What h2spec 2.6.0 asks for and 2.2.1 does not, or asks wrongly.

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
"""The preface, with empty SETTINGS."""
FIELDS = b"\x82\x84\x86\x41\x09localhost"
"""GET http://localhost/, by HPACK's static table."""
PROTOCOL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR = 1, 6, 9


def headers(block: bytes) -> bytes:
    """Return PREFACE and a complete request in one HEADERS frame."""
    return PREFACE + len(block).to_bytes(3, "big") + b"\1\5\0\0\0\1" + block


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(b"INVALID CONNECTION PREFACE\r\n\r\n", PROTOCOL_ERROR, id="3.5-2: no preface"),
        pytest.param(
            PREFACE + b"\0\0\6\6\0\0\0\0\0abcdef", FRAME_SIZE_ERROR, id="6.7-4: a ping of 6 bytes, on stream 0"
        ),
        pytest.param(
            headers(FIELDS + b"\x7f\x07\x00"),
            COMPRESSION_ERROR,
            id="hpack 2.3.3-2: a literal whose name is entry 70 of none",
        ),
        pytest.param(
            headers(FIELDS + b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f"),
            COMPRESSION_ERROR,
            id="hpack 5.2-3: EOS in a string",
        ),
    ],
)
def test_what_h2spec_asks_since(address: str, sent: bytes, code: int) -> None:
    """The connection ends, and if the server sends a reason, it is the right one."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as incoming, contextlib.suppress(ConnectionResetError):
            while len(frame := incoming.read(9)) == 9:
                payload = incoming.read(int.from_bytes(frame[:3], "big"))
                # SETTINGS, PING, GOAWAY, WINDOW_UPDATE
                assert frame[3] in (4, 6, 7, 8), f"frame {frame.hex()} {payload!r}"
                if frame[3] == 7:
                    assert int.from_bytes(payload[4:8], "big") == code
