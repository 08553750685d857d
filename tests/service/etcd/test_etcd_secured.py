"""etcd over TLS, with certificates on both sides, and with users."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.etcd import protocol
from services.etcd.client import RemoteEtcd
from services.etcd.config import EtcdConfig
from services.etcd.store import Put
from services.kit import errors
from tests.etcd_servers import RELEASES, Cluster, etcd
from tests.fake_registry import Authority
from tests.suites.etcd import EtcdSuite, committed, gathered
from tests.support import eventually_async, short_directory

RPC = protocol.module("rpc")
PASSWORD = "richtig"


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with short_directory() as directory:
        yield Authority(directory / "ca")


@pytest.fixture(scope="module", params=RELEASES)
def servers(request, authority: Authority) -> Iterator[Cluster]:
    with etcd(request.param, authority=authority) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tls(authority: Authority) -> dict[str, str]:
    """The settings of a client whose certificate names no user of etcd's."""
    certificate, key = authority.issue("machine", names="DNS:machine")
    return {"ca": str(authority.certificate), "cert": str(certificate), "key": str(key)}


@contextlib.asynccontextmanager
async def client_of(cluster: Cluster, **settings: Any) -> AsyncIterator[RemoteEtcd]:
    client = RemoteEtcd(EtcdConfig(endpoints=cluster.endpoints, **settings))
    try:
        yield client
    finally:
        await client.close()


class TestSecured(EtcdSuite):
    @pytest.fixture
    async def etcd(self, servers: Cluster, tls: dict[str, str]) -> AsyncIterator[RemoteEtcd]:
        async with client_of(servers, **tls) as client:
            yield client


async def test_without_a_certificate_it_is_refused(servers: Cluster, tls: dict[str, str]) -> None:
    """The error says that the server wants one."""
    async with client_of(servers, ca=tls["ca"]) as client:
        with pytest.raises(errors.Unavailable, match="this node shows no certificate"):
            await client.get(b"k")


async def test_another_authority_is_not_trusted(servers: Cluster, tls: dict[str, str], tmp_path: Path) -> None:
    """The error names the file that says who is trusted."""
    other = Authority(tmp_path)
    async with client_of(servers, **{**tls, "ca": str(other.certificate)}) as client:
        with pytest.raises(errors.Unavailable, match=str(other.certificate)):
            await client.get(b"k")


async def test_plain_tcp_to_a_tls_port_is_said(servers: Cluster) -> None:
    """Nothing hangs, and nothing is sent in clear that TLS was to hide: no password goes without TLS."""
    async with client_of(servers, timeout=2.0) as client:
        with pytest.raises(errors.Unavailable, match="failed to connect"):
            await client.get(b"k")


async def asked(client: RemoteEtcd, method: str, **fields: Any) -> None:
    await client._cluster.call(
        protocol.AUTH, method, getattr(RPC, f"Auth{method.removeprefix('Auth')}Request")(**fields)
    )


@pytest.fixture(scope="module", params=RELEASES)
async def guarded(request, authority: Authority, tls: dict[str, str]) -> AsyncIterator[Cluster]:
    """A server with users: root, and "node", who may use /node/ only."""
    with etcd(request.param, authority=authority) as cluster:
        async with client_of(cluster, **tls) as client:
            await asked(client, "UserAdd", name="root", password="wurzel")
            await asked(client, "RoleAdd", name="root")
            await asked(client, "UserGrantRole", user="root", role="root")
            await asked(client, "UserAdd", name="node", password=PASSWORD)
            await asked(client, "RoleAdd", name="nodes")
            permission = {"permType": 2, "key": b"/node/", "range_end": b"/node0"}
            await asked(client, "RoleGrantPermission", name="nodes", perm=permission)
            await asked(client, "UserGrantRole", user="node", role="nodes")
            await asked(client, "AuthEnable")
        yield cluster


@pytest.fixture
def known(tls: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The settings of who may use /node/."""
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    return {**tls, "user": "node", "password_file": str(file), "prefix": "/node/"}


async def test_a_user_works(guarded: Cluster, known: dict[str, str]) -> None:
    """Writes, lists, watches, leases and the status."""
    async with client_of(guarded, **known) as client:
        begin = await committed(client, Put(b"/node/1", b"1"))
        async with client.watch(b"/node/", after=begin - 1) as changes:
            assert [change.key for change in await gathered(changes, begin)] == [b"/node/1"]
        async with client.lease(5.0) as lease:
            await committed(client, Put(b"/node/2", b"", lease.id))
            assert [pair.key async for page in client.pages(b"/node/") for pair in page.pairs] == [
                b"/node/1",
                b"/node/2",
            ]
        status = await client.status()
        assert status.available, status
        assert not status.members[0].error


async def test_what_a_role_does_not_allow_is_denied(guarded: Cluster, known: dict[str, str]) -> None:
    """The write did not happen, and the error says whose fault it is. A watch is denied, too."""
    async with client_of(guarded, **known) as client:
        begin = await committed(client, Put(b"/node/1", b"1"))
        for denied in (client.commit([Put(b"/other", b"")]), client.get(b"/other"), anext(client.pages(b""))):
            with pytest.raises(errors.PermissionDenied, match="does not allow this key"):
                await denied
        with pytest.raises(errors.PermissionDenied):
            async with client.watch(b"/other", after=begin) as changes:
                await anext(changes)
        assert (await client.status()).available


async def test_a_wrong_password_is_said(guarded: Cluster, known: dict[str, str], tls: dict[str, str]) -> None:
    """And no user where there must be one. The password is in no error."""
    Path(known["password_file"]).write_text("falsch")
    async with client_of(guarded, **known) as client:
        with pytest.raises(errors.Unauthenticated, match="does not take this user with this password") as refused:
            await client.get(b"/node/1")
        assert "falsch" not in str(refused.value)
        Path(known["password_file"]).write_text(PASSWORD)
        await client.get(b"/node/1")
    async with client_of(guarded, **tls) as client:  # etcd looks for a user that the certificate names
        with pytest.raises(errors.PermissionDenied, match="the one that the certificate names"):
            await client.get(b"/node/1")


async def test_a_token_that_is_not_valid_any_more_is_renewed(guarded: Cluster, known: dict[str, str]) -> None:
    """A server that is started again has forgotten all tokens; a login takes the place of the old one."""
    async with client_of(guarded, **known) as client:
        begin = await committed(client, Put(b"/node/1", b"1"))
        guarded.members[0].kill()
        guarded.members[0].start()

        async def written() -> bool:
            with contextlib.suppress(errors.Unavailable):
                await committed(client, Put(b"/node/1", b"2"))
                return True
            return False

        await eventually_async(written, "the new server is not used")
        async with client.watch(b"/node/", after=begin) as changes:
            assert (await anext(changes)).changes
    async with client_of(guarded, **known) as client:
        client._cluster._token = "made.up"
        async with client.watch(b"/node/", after=begin) as changes:
            assert (await anext(changes)).changes


async def test_users_that_etcd_does_not_know_of_are_said(servers: Cluster, known: dict[str, str]) -> None:
    """A user is configured, and etcd has no authentication."""
    async with client_of(servers, **known) as client:
        with pytest.raises(errors.FailedPrecondition, match="etcd knows no users: leave out user"):
            await client.get(b"/node/1")
