"""Calls to supervisord return an answer, or raise one of the errors that callers expect."""

from __future__ import annotations

import socket
import threading
import xmlrpc.client
from pathlib import Path

import pytest

from services.kit import supervisor


def answered(place: Path, body: bytes, status: bytes = b"200 OK", *, length: int | None = None) -> object:
    """Return the result of a call for an HTTP answer."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "supervisor.sock"))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                asked = b""
                while b"</methodCall>" not in asked:
                    asked += connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.0 %s\r\nContent-Length: %d\r\n\r\n%s"
                    % (status, len(body) if length is None else length, body)
                )

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            return supervisor.call(place / "supervisor.sock", "getPID", timeout=15.0)
        finally:
            thread.join()


def test_an_answer(place: Path) -> None:
    """The answer is a value, or the fault that supervisord reports."""
    assert answered(place, xmlrpc.client.dumps((7,), methodresponse=True).encode()) == 7
    (place / "supervisor.sock").unlink()
    with pytest.raises(xmlrpc.client.Fault, match="BAD_NAME"):
        answered(place, xmlrpc.client.dumps(xmlrpc.client.Fault(10, "BAD_NAME"), methodresponse=True).encode())


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>500</html>", b"<methodResponse>", b"<methodResponse><params></params></methodResponse>", b"\xff"],
)
def test_a_malformed_answer_is_an_error_that_callers_expect(place: Path, body: bytes) -> None:
    """Such an answer comes from a supervisord that fails, or from another server at that path: the gateway then takes a
    service for not stopped.
    """
    with pytest.raises(supervisor.ERRORS):
        answered(place, body, b"500 Internal Server Error")


def test_an_answer_that_is_cut_short(place: Path) -> None:
    """supervisord was killed in the middle of it."""
    with pytest.raises(supervisor.ERRORS):
        answered(place, b"<?xml", length=1000)
