"""Sandbox controllers of other projects on a node: real ones, in processes of their own, which ctr 2 and an API client
use through the gateway.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from api.containerd.services.sandbox.v1 import sandbox_pb2 as pb
from api.containerd.services.sandbox.v1 import sandbox_stubs
from api.containerd.types.sandbox_pb2 import Sandbox
from services.kit import errors, rpc
from services.kit.rpc import NAMESPACE
from tests.peer import program
from tests.sandboxer import Sandboxer
from tests.support import Node, OwnService, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(300)]

T = TypeVar("T")

PROGRAM = Path(__file__).parents[1] / "sandboxer.py"
READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"


class Controllers:
    """A node whose plugins are ``mine``, which runs, and ``late``, which does not yet; ``theirs`` is no plugin."""

    def __init__(self, place: Path, elsewhere: Path) -> None:
        self.mine, self.theirs = (OwnService(PROGRAM, elsewhere / name) for name in ("m", "t"))
        self.late = elsewhere / "l"
        sockets = {"mine": self.mine.sockets[0], "late": self.late / "s" / "sandboxer.sock"}
        self.node = Node(
            place,
            config="".join(
                f'[proxy_plugins.{name}]\ntype = "sandbox"\naddress = "{socket}"\n' for name, socket in sockets.items()
            ),
        )

    def client(self, work: Callable[[Any, Any], Awaitable[T]]) -> T:
        """The result of ``work``, which gets clients of Controller and Store."""

        async def connected() -> T:
            async with rpc.Channel(self.node.socket) as channel:
                return await work(channel.client(sandbox_stubs.CONTROLLER), channel.client(sandbox_stubs.STORE))

        return asyncio.run(connected())

    def make(self, id_: str, namespace: str = "default", sandboxer: str = "mine") -> int:
        """Record, create and start a sandbox, as containerd's own client does; returns the pid."""

        async def made(controller: Any, store: Any) -> int:
            headers = {NAMESPACE: namespace}
            record = Sandbox(sandbox_id=id_, sandboxer=sandboxer, runtime=Sandbox.Runtime(name="r"))
            await store.Create(pb.StoreCreateRequest(sandbox=record), headers=headers)
            create = pb.ControllerCreateRequest(sandbox_id=id_, sandboxer=sandboxer, sandbox=record)
            await controller.Create(create, headers=headers)
            start = pb.ControllerStartRequest(sandbox_id=id_, sandboxer=sandboxer)
            started = await controller.Start(start, headers=headers)
            return int(started.pid)

        return self.client(made)

    def state(self, id_: str, namespace: str = "default", sandboxer: str = "mine") -> str:
        request = pb.ControllerStatusRequest(sandbox_id=id_, sandboxer=sandboxer)

        async def asked(controller: Any, store: Any) -> str:
            return str((await controller.Status(request, headers={NAMESPACE: namespace}, timeout=30)).state)

        return self.client(asked)

    def shutdown(self, id_: str, namespace: str) -> None:
        request = pb.ControllerShutdownRequest(sandbox_id=id_, sandboxer="mine")
        self.client(lambda controller, store: controller.Shutdown(request, headers={NAMESPACE: namespace}))

    def routes(self) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in json.loads(self.node.splitd("routes", "--json").stdout)}


@pytest.fixture(scope="module")
def controllers() -> Iterator[Controllers]:
    """One for all tests, each of which has namespaces of its own."""
    with short_directory() as place, short_directory() as elsewhere:
        made = Controllers(place, elsewhere)
        try:
            with made.mine, made.theirs:
                made.node.up()
                yield made
        finally:
            made.node.clear()
            for root in elsewhere.glob("*/r"):
                Sandboxer(root).end()


def test_a_controller_that_is_away_is_no_failure_of_the_node(controllers: Controllers) -> None:
    """Its route and its rows say why, calls name it, and it is used as soon as it appears."""
    node = controllers.node
    node.wait_healthy()
    route = controllers.routes()["sandbox.late"]
    assert (route["address"], route["proxy_plugin"]) == (str(controllers.late / "s" / "sandboxer.sock"), True)
    assert "No such file or directory" in route["trouble"]
    assert not controllers.routes()["sandbox.mine"]["trouble"]
    rows = [
        line.split()[:2] + line.split()[-1:] for line in node.out("plugins", "ls").splitlines() if "sandbox" in line
    ]
    assert rows == [
        ["io.containerd.sandbox.store.v1", "local", "ok"],
        ["io.containerd.sandbox.controller.v1", "mine", "ok"],
        ["io.containerd.sandbox.controller.v1", "late", "error"],
        ["io.containerd.grpc.v1", "sandbox-controllers", "ok"],
        ["io.containerd.grpc.v1", "sandboxes", "ok"],
    ]
    plugins = {each["name"]: (each["in_place"], each["healthy"]) for each in node.status()["proxy_plugins"]}
    assert plugins == {"mine": (False, True), "late": (False, False)}
    with pytest.raises(errors.Unavailable, match=r"service sandbox\.late has been unreachable"):
        controllers.state("s", "late", "late")
    with OwnService(PROGRAM, controllers.late):
        eventually(lambda: not controllers.routes()["sandbox.late"]["trouble"], "it is not seen")
        controllers.make("s", "late", "late")
        assert controllers.state("s", "late", "late") == READY


def test_sandboxes_stay_with_their_controller_through_replace_and_restore(controllers: Controllers) -> None:
    """Also through kill -9 of the gateway and of the controller. A draining candidate goes with its last sandbox."""
    node = controllers.node
    controllers.make("old", "n")
    said = node.splitd(
        *("replace", "sandbox.mine", "--address", str(controllers.theirs.sockets[0])),
        *("--name", "t", "--for", "namespace=n"),
    ).stdout
    assert "sandbox.mine: t at" in said
    controllers.make("new", "n")
    controllers.make("other", "o")

    def there(service: OwnService) -> set[str]:
        return {path.name for path in service.root.iterdir() if path.name[:2] in ("n:", "o:")}

    assert (there(controllers.mine), there(controllers.theirs)) == ({"n:old", "o:other"}, {"n:new"})
    node.kill("gateway")
    node.wait_healthy()
    states = {id_: controllers.state(id_, namespace) for id_, namespace in (("old", "n"), ("new", "n"), ("other", "o"))}
    assert states == dict.fromkeys(states, READY)
    controllers.theirs.kill()
    controllers.theirs.start()
    assert controllers.state("new", "n") == READY  # held for a moment
    node.splitd("restore", "sandbox.mine")
    (candidate,) = controllers.routes()["sandbox.mine"]["candidates"]
    assert (candidate["state"], candidate["objects"]) == ("draining", 1)
    controllers.make("after", "n")
    assert there(controllers.mine) == {"n:old", "o:other", "n:after"}
    controllers.shutdown("new", "n")
    assert not there(controllers.theirs)
    node.splitd("restore", "sandbox.mine", "--forget", "--yes")
    assert not controllers.routes()["sandbox.mine"]["candidates"]


def test_a_daemon_and_a_stranger_are_refused_as_candidates(controllers: Controllers) -> None:
    """The node's own socket, and a service of another kind."""
    node = controllers.node
    command = ("replace", "sandbox.mine", "--address")
    assert "is a whole daemon" in node.splitd(*command, str(node.socket), ok=False).stderr
    said = node.splitd(*command, str(node.state / "tasks.sock"), ok=False).stderr
    assert "does not serve what sandbox.mine needs" in said
    assert "no route" in node.splitd("replace", "sandbox.nobody", "--address", "/x.sock", ok=False).stderr


def test_faults_reach_a_controllers_calls(controllers: Controllers) -> None:
    """The error says who injected it, and the call is not made."""
    controllers.node.splitd("fault", "sandbox.mine.Start", "--error", "UNAVAILABLE")
    with pytest.raises(errors.Unavailable, match="injected by splitd fault"):
        controllers.make("s", "faulty")
    assert controllers.state("s", "faulty") == NOT_READY
    controllers.node.splitd("fault", "--stop", "--all")


def test_ctr_2_lists_and_removes_sandboxes(controllers: Controllers, place: Path) -> None:
    """Unmodified. What it cannot do, it cannot on containerd 2.1 either: its run names no controller."""
    ctr = program("ctr")
    pid = controllers.make("s")
    node = controllers.node

    def listed() -> list[str]:
        return [line.split()[0] for line in node.out("sandboxes", "ls", program=ctr).splitlines()[1:]]

    assert listed() == ["s"]
    assert node.out("sandboxes", "ls", "--filters", "id==t", program=ctr).split() == ["ID", "CREATED", "RUNTIME"]
    node.ctr("sandboxes", "rm", "s", program=ctr)
    assert listed() == []
    eventually(lambda: not Path(f"/proc/{pid}/exe").exists(), "its process runs on")
    assert not list(controllers.mine.root.glob("default:*"))
    with pytest.raises(errors.NotFound, match="sandbox s"):
        controllers.state("s")
    (place / "pod.json").write_text('{"ociVersion": "1.0.2"}')
    failed = node.ctr("sandboxes", "run", place / "pod.json", "t", program=ctr, ok=False)
    assert "failed to start: invalid argument: sandbox controller name can not be empty" in failed.stderr
    assert listed() == ["t"]
    node.ctr("sandboxes", "rm", "--force", "t", program=ctr)
    assert listed() == []
