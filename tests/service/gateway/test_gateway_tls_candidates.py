"""A candidate on a port with TLS, where both sides show a certificate: one of the examples, behind a gateway."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from client.routes_remote import RemoteRoutes, Stands
from gateway.candidates import Terms
from services.content.remote import RemoteStore
from services.kit import rpc
from services.oci.digests import Digest
from tests.fake_registry import Authority
from tests.support import TOP, ServiceProcess, directory_with_attributes, eventually_async, short_directory

pytestmark = [pytest.mark.once, pytest.mark.timeout(60)]


@contextlib.contextmanager
def example(root: Path, authority: Authority) -> Iterator[str]:
    """The address of examples/blobs.py, which lets in only whom the authority has signed."""
    cert, key = authority.issue("store")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = ["--root", root, "--address", address, "--cert", cert, "--key", key, "--ca", authority.certificate]
    with subprocess.Popen(
        [sys.executable, str(TOP / "examples/blobs.py"), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(TOP)},
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield address
        finally:
            process.terminate()


async def write(blobs: RemoteStore, data: bytes) -> Digest:
    digest = Digest.parse(f"sha256:{hashlib.sha256(data).hexdigest()}")
    writer = await blobs.writer(f"w-{digest.hex}", len(data), digest)
    await writer.write(data)
    await writer.commit(len(data), digest, {"containerd.io/gc.root": "now"})
    return digest


async def candidate(routes: RemoteRoutes) -> Stands:
    (found,) = next(each for each in await routes.all() if each.name == "content").candidates
    return found


async def is_down(routes: RemoteRoutes, why: str) -> bool:
    return why in (await candidate(routes)).trouble


async def is_up(routes: RemoteRoutes) -> bool:
    return not (await candidate(routes)).trouble


async def test_it_takes_blobs_once_its_certificates_fit() -> None:
    """Until then it is down, the route says which file is wrong and why, and new blobs go home."""
    with short_directory() as place, directory_with_attributes() as theirs, contextlib.ExitStack() as stack:
        root, state = place / "r", place / "s"
        for module, sockets in (("services.metadata", ()), ("services.content", ()), ("gateway", ("internal.sock",))):
            stack.enter_context(ServiceProcess(module, root, state, sockets=sockets))
        authority = Authority(place / "ca")
        address = stack.enter_context(example(theirs, authority))
        old, old_key = authority.issue("old", days=-1)
        new, new_key = authority.issue("node")
        async with rpc.Channel(state / "internal.sock", "gateway") as channel:
            routes = RemoteRoutes(channel)
            blobs = RemoteStore(channel, {rpc.NAMESPACE: "n"})
            terms = Terms(
                route="content",
                name="far",
                address=address,
                ca=str(authority.certificate),
                cert=str(old),
                key=str(old_key),
            )
            await routes.replace(terms)
            why = f"failed to connect to {address}: cert {old}: it expired at "
            await eventually_async(lambda: is_down(routes, why), "it does not say why it is down")
            at_home = await write(blobs, b"at home")

            await routes.replace(replace(terms, cert=str(new), key=str(new_key)))
            await eventually_async(lambda: is_up(routes), "it does not come")
            far = await write(blobs, b"far away" * 100_000)
            for digest, data in ((at_home, b"at home"), (far, b"far away" * 100_000)):
                assert b"".join([piece async for piece in blobs.read(digest, 0, 0)]) == data
        ours = {path.name for path in (root / "content/blobs/sha256").glob("*")}
        assert at_home.hex in ours
        assert far.hex not in ours
        assert any(far.hex in str(path) for path in theirs.rglob("*"))
