"""Calls over TCP and TLS, on both transports, to grpcio's server and grpc-go's; certificates that do not fit."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.kit import errors, rpc
from services.kit.addresses import Address
from services.kit.certificates import CertificateError, Certificates, validity
from tests.fake_registry import Authority
from tests.interop import testing_pb2 as pb
from tests.interop.client import SERVICE, Peer, body
from tests.interop.programs import go_program
from tests.support import eventually

pytestmark = pytest.mark.once
METHOD = f"/{SERVICE.full_name}/UnaryCall"


@pytest.fixture(params=["wire", "grpcio"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The transport of the client."""
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority, which nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"))


@contextlib.asynccontextmanager
async def grpcio_server(
    authority: Authority | None, host: str = "127.0.0.1", *, clients: bool = False, **issued: Any
) -> AsyncIterator[str]:
    """grpcio's own server, which answers what it was asked; with ``clients``, only to those with a certificate of the
    authority.
    """

    async def answer(request: bytes, context: Any) -> bytes:
        return request

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, {"UnaryCall": handler}),))
    if authority is None:
        port = server.add_insecure_port(f"{host}:0")
    else:
        cert, key = authority.issue("server", **issued)
        trust = authority.certificate.read_bytes() if clients else None
        port = server.add_secure_port(
            f"{host}:0",
            grpc.ssl_server_credentials(
                [(key.read_bytes(), cert.read_bytes())], root_certificates=trust, require_client_auth=clients
            ),
        )
    await server.start()
    try:
        yield f"{host}:{port}"
    finally:
        await server.stop(None)


async def ask(address: Address, seconds: float = 5.0) -> Any:
    """What one call answers, or its error."""
    async with rpc.Channel(address, "theirs", pings="never") as channel:
        await channel.reached(seconds)
        return await channel.unary(METHOD, b"\x0a\x01x", {}, 5.0)


async def refusal(address: Address) -> str:
    """Why the service cannot be reached."""
    async with rpc.Channel(address, "theirs", pings="never") as channel:
        with pytest.raises(errors.Disconnected) as caught:
            await channel.unary(METHOD, b"", {}, 5.0)
        return str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_tcp_and_tls(transport: str, authority: Authority, host: str) -> None:
    """IPv4 and IPv6, without and with TLS. A proxy for HTTP is not asked."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("http_proxy", "http://127.0.0.1:9")
        async with grpcio_server(None, host) as address:
            assert await ask(Address(address=address)) == b"\x0a\x01x"
        async with grpcio_server(authority, host) as address:
            assert await ask(Address(address=address, ca=str(authority.certificate))) == b"\x0a\x01x"


async def test_each_side_shows_its_certificate(transport: str, authority: Authority) -> None:
    """mTLS: without a certificate the server refuses; with one it answers, under the name that is expected of it."""
    cert, key = authority.issue("node")
    async with grpcio_server(authority, clients=True, names="DNS:store.internal") as address:
        given: dict[str, Any] = {
            "address": address,
            "ca": str(authority.certificate),
            "server_name": "store.internal",
            "connect_timeout": 2.0,
        }
        assert await ask(Address(**given, cert=str(cert), key=str(key))) == b"\x0a\x01x"
        if transport == "wire":
            said = await refusal(Address(**given))
            assert "it closed the connection at once (this node shows no certificate)" in said
        else:
            with pytest.raises(errors.Disconnected):
                await ask(Address(**given), 1.0)


@pytest.mark.parametrize("given", ["cert", "expired", "key", "ca", "password"])
async def test_files_that_cannot_be_used_are_named(
    transport: str, authority: Authority, tmp_path: Path, given: str
) -> None:
    """With what is wrong with them."""
    cert, key = authority.issue("node")
    expired, its_key = authority.issue("expired", days=-1)
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", key, "-aes128", "-passout", "pass:secret", "-out", locked],
        check=True,
        capture_output=True,
    )
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "cert": ({"cert": "/nowhere/c.pem"}, "cert /nowhere/c.pem: no such file or directory"),
        "expired": ({"cert": str(expired), "key": str(its_key)}, f"cert {expired}: it expired at 20"),
        "key": ({"cert": str(cert), "key": str(its_key)}, f"key {its_key}: it is not the key of certificate {cert}"),
        "ca": ({"ca": str(key)}, f"ca {key}: it has no certificate in PEM form"),
        "password": ({"cert": str(cert), "key": str(locked)}, f"key {locked}: it has a password"),
    }
    where, words = cases[given]
    async with grpcio_server(authority) as address:
        said = await refusal(Address(address=address, **where))
        assert said.startswith(f"service theirs is not reachable (failed to connect to {address}: {words}"), said


@pytest.mark.parametrize("case", ["expired", "name", "authority", "plain"])
async def test_a_service_that_is_not_the_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, stranger: Authority, case: str
) -> None:
    """By the wire, in words that say why. (grpcio has its own words.)"""
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", "wire")
    several: dict[str, dict[str, Any]] = {"expired": {"days": -1}, "name": {"names": "DNS:other"}}
    theirs = {"authority": stranger, "plain": None}.get(case, authority)
    async with grpcio_server(theirs, **several.get(case, {})) as address:
        said = await refusal(Address(address=address, ca=str(authority.certificate)))
    words = {
        "expired": "its certificate is not accepted: certificate has expired",
        "name": "its certificate is not accepted: IP address mismatch, certificate is not valid for '127.0.0.1'",
        "authority": "its certificate is not accepted: unable to get local issuer certificate",
        "plain": "it does not speak TLS",
    }[case]
    assert words.lower() in said.lower()
    if case != "plain":
        assert f"(checked for 127.0.0.1 with ca {authority.certificate})" in said


async def test_who_accepts_and_says_nothing_is_left(transport: str, authority: Authority) -> None:
    """After the limit of the attempt, on both sides of it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address(
            address=f"127.0.0.1:{silent.getsockname()[1]}", ca=str(authority.certificate), connect_timeout=0.3
        )
        async with rpc.Channel(address, "theirs", pings="never") as channel:
            with pytest.raises(errors.Unavailable):
                await channel.reached(1.0)


async def test_files_are_read_again_when_they_change(
    transport: str, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    """A channel that could not connect does so once its authority's file is the right one."""
    ca = tmp_path / "ca.pem"
    shutil.copy(stranger.certificate, ca)
    async with grpcio_server(authority) as address:
        async with rpc.Channel(Address(address=address, ca=str(ca)), "theirs", pings="never") as channel:
            with pytest.raises(errors.Disconnected):
                await channel.reached(0.3)
            shutil.copy(authority.certificate, tmp_path / "new.pem")
            os.replace(tmp_path / "new.pem", ca)
            await channel.reached(20)
            assert await channel.unary(METHOD, b"\x0a\x01x", {}, 5.0) == b"\x0a\x01x"


@contextlib.contextmanager
def go_server(authority: Authority, log: Path) -> Iterator[str]:
    """grpc-go's interop server, with TLS."""
    cert, key = authority.issue("go")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [go_program("server"), f"-port={port}", "-use_tls", f"-tls_cert_file={cert}", f"-tls_key_file={key}"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        eventually(lambda: _listens(port), "it does not listen")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


async def test_grpc_gos_server(transport: str, authority: Authority, tmp_path: Path) -> None:
    """Unary, streams and a large message, over its TLS, which wants ALPN."""
    with go_server(authority, tmp_path / "go.log") as address:
        async with rpc.Channel(
            Address(address=address, ca=str(authority.certificate)), "theirs", pings="never"
        ) as channel:
            await channel.reached(10)
            peer = Peer(channel)
            await peer.large()
            async with peer.duplex() as stream:
                for size in (1, 100_000, 3_000_000):
                    await stream.send(
                        pb.StreamingOutputCallRequest(
                            payload=body(size), response_parameters=[pb.ResponseParameters(size=size)]
                        )
                    )
                    answer = await stream.receive()
                    assert answer is not None
                    assert len(answer.payload.body) == size
                await stream.done_sending()
                assert await stream.receive() is None


def test_the_times_of_a_certificate(authority: Authority, tmp_path: Path) -> None:
    """As openssl says them."""
    cert, _ = authority.issue("times")
    first, last = validity(ssl.PEM_cert_to_DER_cert(cert.read_text()))
    said = subprocess.run(
        ["openssl", "x509", "-in", cert, "-noout", "-dates"], check=True, capture_output=True, text=True
    ).stdout
    for line, found in zip(said.splitlines(), (first, last), strict=True):
        said_time = line.partition("=")[2].replace("GMT", "+0000")
        assert datetime.datetime.strptime(said_time, "%b %d %H:%M:%S %Y %z") == found
    for damaged in (b"", b"\x30", b"\x30\x84\xff\xff\xff\xff", b"\x30\x03\x02\x01\x01"):
        with pytest.raises((ValueError, IndexError)):
            validity(damaged)


def test_a_certificate_that_expires_later_is_noticed(authority: Authority, tmp_path: Path) -> None:
    """Each connection looks again, though the file has not changed."""
    cert, key = authority.issue("soon")
    now = datetime.datetime.now(datetime.UTC)
    times = iter([now, now, now + datetime.timedelta(days=3)])
    certificates = Certificates(Address(address="h:1", cert=str(cert), key=str(key)), now=lambda: next(times))
    certificates.context()
    with pytest.raises(CertificateError, match=f"cert {cert}: it expired at"):
        certificates.context()
