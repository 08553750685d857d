"""The snapshotters that the gateway knows: while the snapshots service announces them, is absent, or never was
there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from gateway.config import Config, ProxyPlugin
from gateway.routes import Routes
from gateway.snapshotters import Snapshotters
from gateway.upstream import Upstream
from services.kit import errors, rpc
from services.kit.rpc import Call
from services.snapshots.server import SnapshottersServicer
from services.snapshots.store import About
from tests.support import eventually_async

CALL = Call("", {})
OVERLAY, NATIVE, BLOCK = (About(name, exports={"root": f"/{name}"}) for name in ("overlayfs", "native", "block"))


class Described:
    def __init__(self, about: About) -> None:
        self._about = about

    async def about(self) -> About:
        return self._about


def service(place: Path, *abouts: About) -> contextlib.AbstractAsyncContextManager[object]:
    """The announcing part of the snapshots service."""
    return rpc.serving(place / "snapshots.sock", [SnapshottersServicer([Described(each) for each in abouts])])


@contextlib.asynccontextmanager
async def gateway(
    place: Path, proxies: Mapping[str, ProxyPlugin] = {}, *, hold: float = 5.0
) -> AsyncIterator[tuple[Routes, Snapshotters]]:
    """The parts of a gateway that know the snapshotters; its state and its root are in ``place``."""
    (place / "gateway").mkdir(exist_ok=True)
    routes = Routes(place, Config(hold=hold), proxies)
    watches: list[asyncio.Task[None]] = []

    def watched(upstream: Upstream) -> None:
        watches.append(asyncio.create_task(upstream.watch()))

    snapshotters = Snapshotters(routes, place, proxies)
    routes.added.append(watched)
    for upstream in routes.upstreams:
        watched(upstream)
    watches.append(asyncio.create_task(snapshotters.follow()))
    try:
        yield routes, snapshotters
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def test_a_node_that_starts_waits_for_the_first_announcement(place: Path) -> None:
    """Calls before it are held; after it, a snapshotter that was not announced is not loaded."""
    async with gateway(place) as (routes, snapshotters):
        early = asyncio.create_task(routes.snapshotter("native", CALL))
        await asyncio.sleep(0)
        async with service(place, OVERLAY, NATIVE):
            assert (await early).name == "snapshots.native"
            assert routes.snapshotters == ("overlayfs", "native")
            with pytest.raises(errors.InvalidArgument, match="^snapshotter not loaded: btrfs: invalid argument$"):
                await routes.snapshotter("btrfs", CALL)
            with pytest.raises(errors.InvalidArgument, match="argument missing"):
                await routes.snapshotter("", CALL)
            assert await snapshotters.now(CALL) == (OVERLAY, NATIVE)


async def test_without_any_announcement_nothing_is_called_unknown(place: Path) -> None:
    """The error names the service that could announce it."""
    async with gateway(place, hold=0.05) as (routes, _):
        with pytest.raises(errors.Unavailable, match="^service snapshots has been unreachable for "):
            await routes.snapshotter("overlayfs", CALL)


async def test_a_snapshotter_that_is_down_is_down_and_not_unknown(place: Path) -> None:
    """This holds after a start of the gateway too, by the saved announcement."""
    async with service(place, OVERLAY), gateway(place) as (routes, _):
        await routes.snapshotter("overlayfs", CALL)
    async with gateway(place, hold=0.05) as (routes, snapshotters):
        upstream = (await routes.snapshotter("overlayfs", CALL)).to("")
        with pytest.raises(errors.Unavailable, match="^service snapshots.overlayfs has been unreachable for "):
            await upstream.ready(CALL)
        with pytest.raises(errors.InvalidArgument, match="not loaded: native"):
            await routes.snapshotter("native", CALL)
        assert await snapshotters.now(CALL) == (OVERLAY,)


async def test_a_snapshotter_says_that_its_mounts_last(place: Path) -> None:
    """It announces it; of a stranger's, the configuration says it, also if one of ours has that name."""
    exports = {"lasting_mounts": "true"}
    proxies = {
        "native": ProxyPlugin(type="snapshot", address="/run/n.sock"),
        "mine": ProxyPlugin(type="snapshot", address="/run/m.sock", exports=exports),
        "overlayfs": ProxyPlugin(type="content", address="/run/c.sock"),
    }
    said = [About(name, exports=exports) for name in ("overlayfs", "native")]
    async with gateway(place, proxies) as (routes, snapshotters), service(place, *said, BLOCK):
        await routes.snapshotter("block", CALL)
        names = ("overlayfs", "native", "mine", "block", "unknown")
        assert [name for name in names if snapshotters.lasting(name)] == ["overlayfs", "mine"]


async def test_another_release_may_have_others(place: Path) -> None:
    """A new one can be used at once, one that is no longer announced is not loaded; metadata is told."""
    told: list[tuple[str, ...]] = []
    async with gateway(place) as (routes, snapshotters):
        routes.changed.append(lambda: told.append(routes.snapshotters))
        async with service(place, OVERLAY, NATIVE):
            await routes.snapshotter("native", CALL)
        async with service(place, OVERLAY, BLOCK):

            async def heard() -> bool:
                return "block" in routes.snapshotters

            await eventually_async(heard)
            assert (await routes.snapshotter("block", CALL)).name == "snapshots.block"
            with pytest.raises(errors.InvalidArgument, match="not loaded: native"):
                await routes.snapshotter("native", CALL)
            assert await snapshotters.now(CALL) == (OVERLAY, BLOCK)
    assert told == [("overlayfs", "native"), ("overlayfs", "block")]


async def test_a_proxy_plugin_takes_the_place_of_ours(place: Path) -> None:
    """It does so by its name; one with another name is added to ours."""
    proxies = {
        "native": ProxyPlugin(type="snapshot", address="/run/n.sock"),
        "stargz": ProxyPlugin(type="snapshot", address="/run/s.sock"),
    }
    async with service(place, OVERLAY, NATIVE), gateway(place, proxies) as (routes, _):
        await routes.snapshotter("overlayfs", CALL)
        assert routes.snapshotters == ("overlayfs", "native", "stargz")
        assert [routes[f"snapshots.{name}"].to("").address for name in ("native", "stargz")] == [
            "/run/n.sock",
            "/run/s.sock",
        ]
