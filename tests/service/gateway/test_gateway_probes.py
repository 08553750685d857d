"""The gateway's health over HTTP, with and without the services behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, Health, ProxyPlugin
from gateway.probes import Probes
from gateway.routes import Routes
from services.kit import errors, loops, rpc, settings
from services.kit.health import HealthServicer
from services.kit.http_server import Request
from tests.pages import asked
from tests.support import TOP, ServiceProcess, eventually, eventually_async

pytestmark = pytest.mark.once


def test_a_process_says_how_its_services_are(place: Path) -> None:
    """A present one is 200; an absent one is 503 with the reason, and so is the node; an unknown name is 404."""
    config, where = place / "c.toml", place / "health.sock"
    config.write_text(f'[health]\naddress = "{where}"\n')
    with ServiceProcess("gateway", place / "r", place / "s", sockets=("containerd.sock",), config=config):
        eventually(where.is_socket, "it does not listen")
        status, node = asked(where, "/health")
        assert (status, node["status"], node["services"]["gateway"]) == (503, "NOT_SERVING", {"status": "SERVING"})
        assert node["services"]["content"]["trouble"].startswith("service content has been unreachable for ")
        assert asked(where, "/health/gateway") == (200, {"status": "SERVING"})
        assert asked(where, "/health/content")[0] == 503
        for page in ("/", "/health/nobody", "/healthy", "/health/content/x"):
            assert asked(where, page)[0] == 404, page
        with ServiceProcess("services.content", place / "r", place / "s"):
            assert eventually(lambda: asked(where, "/health/content")[0] == 200, "it is not noticed")
            assert asked(where, "/health")[0] == 503
        assert eventually(lambda: asked(where, "/health/content")[0] == 503, "it is not noticed")
    assert not where.exists()


@pytest.mark.parametrize("table", ["health", "metrics"])
def test_an_address_that_is_taken_is_one_line_with_its_setting(table: str, place: Path) -> None:
    """Without a traceback; the page is there when the address is free again."""
    config = place / "c.toml"
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        config.write_text(f'[{table}]\naddress = "127.0.0.1:{port}"\n')
        process = ServiceProcess("gateway", place / "r", place / "s", sockets=("containerd.sock",), config=config)
        with process:
            said = f"[{table}] address = '127.0.0.1:{port}' is not served: "
            eventually(lambda: said in process.text(), "the log does not say it")
            holder.close()
            eventually(lambda: f"[{table}] address: served at 127.0.0.1:{port}" in process.text(), "it is not tried")
            assert process.text().count(said) == 1
            assert "Traceback" not in process.text()


class Ailing:
    """A service whose health is as ``table`` says, and which counts the requests."""

    def __init__(self) -> None:
        self.table = {"": 1}
        self.trouble = ""
        self.asked = 0
        self._health = HealthServicer(self.table, trouble=lambda: self.trouble)

    SERVICE = HealthServicer.SERVICE

    async def Check(self, request: Any, call: rpc.Call) -> Any:
        self.asked += 1
        return await self._health.Check(request, call)


class Without:
    """A foreign service without health."""

    SERVICE = HealthServicer.SERVICE

    async def Check(self, request: Any, call: rpc.Call) -> Any:
        raise errors.Unimplemented("unknown service grpc.health.v1.Health")


async def found(probes: Probes, page: str = "/health") -> tuple[int, Mapping[str, Any]]:
    response = await probes.answer(Request("GET", page))
    return response.status, json.loads(response.body)


async def test_the_services_own_health_counts(place: Path) -> None:
    """A damaged database is reported, though its service is there. A foreign snapshotter beside ours that is absent is
    reported, and the node is healthy; in the place of ours it makes the node unhealthy.
    """
    names = ("metadata", "content", "snapshots", "images", "tasks")
    services: dict[str, Ailing | Without] = {"diff": Without(), **{name: Ailing() for name in names}}
    metadata = services["metadata"] = Ailing()
    proxies = {"mine": ProxyPlugin(type="snapshot", address=str(place / "nobody.sock"))}
    routes, ours = Routes(place, Config(), proxies), list[str]()
    probes = Probes(routes, lambda: ours, fresh=0.0)
    watches = loops.Tasks()
    for upstream in routes.upstreams:
        watches.keep(loops.start(f"the watch of {upstream.name}", upstream.watch))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(watches.cancel)
        for name, service in services.items():
            await stack.enter_async_context(rpc.serving(place / f"{name}.sock", [service], grace=0))

        async def works() -> bool:
            return (await found(probes))[0] == 200

        await eventually_async(works, "it does not come to work")
        _, node = await found(probes)
        assert node["status"] == "SERVING"
        assert node["services"]["snapshots.mine"]["status"] == "NOT_SERVING"
        assert node["services"]["diff"] == {"status": "SERVING"}
        ours.append("mine")
        assert (await found(probes))[0] == 503
        ours.clear()
        metadata.table[""] = 2
        metadata.trouble = "its database is damaged"
        status, node = await found(probes)
        assert (status, node["status"]) == (503, "NOT_SERVING")
        assert node["services"]["metadata"]["trouble"] == "its database is damaged"
        assert await found(probes, "/health/metadata") == (503, node["services"]["metadata"])
        assert (await found(probes, "/health/content"))[0] == 200


async def test_however_many_ask_a_service_is_asked_once(place: Path) -> None:
    """This holds as long as its answer is valid."""
    service, routes = Ailing(), Routes(place, Config(), {})
    probes, upstream = Probes(routes, tuple, fresh=60.0), routes["content"].to("")
    async with (
        rpc.serving(place / "content.sock", [service], grace=0),
        loops.running("the watch of content", upstream.watch),
    ):
        await eventually_async(lambda: asyncio.sleep(0, upstream.up), "it is not there")
        answers = await asyncio.gather(*(found(probes, page) for page in ["/health", "/health/content"] * 50))
        assert {status for status, _ in answers[1::2]} == {200}
        assert service.asked == 1


def test_it_costs_nothing_where_it_is_not_configured() -> None:
    """The server is not imported then."""
    program = (
        "import sys, gateway.__main__, gateway.config as c; c.Health(); "
        "assert not {'services.kit.http_server', 'gateway.probes'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=TOP)


def test_an_address_that_is_none_is_an_error() -> None:
    """The error names table and key."""
    file = settings.File("c.toml", {"health": {"address": "here"}})
    with pytest.raises(errors.InvalidArgument, match=r"c.toml: \[health\] address: 'here' is neither HOST:PORT nor"):
        settings.load(Health, file, "health")
