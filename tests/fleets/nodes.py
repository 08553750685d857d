"""A fleet on one machine: real nodes, a registry and an etcd of three members, each on a host of its own
(tests/fleets/network.py). All files are below the network's directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from client.fleet_remote import FleetView
from deploy import samples
from deploy.samples import Image
from services.kit import errors
from services.kit.rpc import Channel
from services.oci.digests import Digest, digest_of
from services.oci.media_types import LAYER
from tests import pulls
from tests.etcd_servers import DEBIAN, Cluster
from tests.fake_registry import Authority
from tests.fleets.network import Host, Network
from tests.support import TOP, Node, eventually, expect

REGISTRY_PORT, PEER_PORT = 5000, 5001


def made(layers: int = 3, kib: int = 6 << 10) -> Image:
    """An image that no other test has, with layers that are quickly made and unpacked: they are not compressed."""
    raws = [pulls.marked(kib) for _ in range(layers)]
    return pulls.image_of([pulls.gzipped(pulls.busybox_layer()), *(pulls.Layer(raw, LAYER, raw) for raw in raws)])


def size_of(image: Image) -> int:
    """Bytes of all blobs."""
    return sum(map(len, image.blobs.values()))


class Registry:
    """Debian's docker-registry on a host. What is pushed to it does not cross the network."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.pushes: list[str] = []
        self.name = f"{host.address}:{REGISTRY_PORT}"
        self._pushed = samples.Registry(host.network.directory / host.name)
        config = json.loads(self._pushed.config.read_text())
        config["http"]["addr"] = self.name
        path = host.network.directory / f"{host.name}.json"
        path.write_text(json.dumps(config))
        log = (host.network.directory / f"{host.name}.log").open("wb")
        with log:
            host.start("docker-registry", "serve", path, stdout=log, stderr=log)
        eventually(lambda: host.call(lambda: self._pushed.http("GET", f"http://{self.name}/v2/")[0] == 200))

    def push(self, image: Image, name: str) -> str:
        """The reference by which nodes pull it."""
        self._pushed.push(image, name)
        self.pushes.append(name)
        return f"{self.name}/{name}"

    def close(self) -> None:
        self._pushed.close()


class _Members:
    """The hosts of an etcd's members (``etcd_servers.Hosts``)."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = hosts

    def host(self, number: int) -> str:
        return self._hosts[number].address

    def inside(self, number: int) -> Sequence[str]:
        return self._hosts[number].inside

    def call(self, number: int, function: Callable[[], bool]) -> bool:
        return self._hosts[number].call(function)

    def cut(self, number: int) -> None:
        self._hosts[number].unplug()

    def mend(self, number: int) -> None:
        self._hosts[number].plug()


class FleetMember(Node):
    """A node on a host. Its TCP sockets are on that host's network, its unix sockets are ours."""

    def __init__(self, host: Host, config: str = "") -> None:
        self.host = host
        directory = host.network.directory / host.name
        directory.mkdir()
        super().__init__(directory, config=config)

    def command(self, verb: str, *words: str | Path) -> list[str]:
        """The command line of a verb of splitd."""
        where: list[str | Path] = ["--root", self.root, "--state", self.state]
        if self.config is not None:
            where += ["--config", self.config]
        return [sys.executable, "-m", "deploy", *map(str, (verb, *where, *words))]

    def splitd(
        self, verb: str, *arguments: str, ok: bool | None = True, seconds: float = 90.0
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(verb, *arguments)
        done = self.host.run(
            *command,
            cwd=TOP,
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
        expect(command, done, ok)
        return done

    def begin(self, reference: str, *words: str) -> Pull:
        """Begin ``splitd pull`` there."""
        command = self.command("pull", "--plain-http", "--quiet", *words, reference)
        return Pull(
            self,
            reference,
            self.host.start(
                *command,
                cwd=TOP,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            ),
        )

    def known(self) -> set[str]:
        """The nodes of the fleet that it knows."""

        async def names(view: FleetView) -> set[str]:
            return {member.name async for member in view.nodes()}

        return self._asked(names)

    def why(self, digest: str) -> set[str]:
        """The nodes that have a blob, as it knows."""

        async def names(view: FleetView) -> set[str]:
            return {holder.node for holder in (await view.why(Digest.parse(digest)))[0]}

        return self._asked(names)

    def _asked(self, question: Callable[[FleetView], Awaitable[set[str]]]) -> set[str]:
        async def ask() -> set[str]:
            async with Channel(self.state / "fleet.sock", "fleet") as channel:
                return await question(FleetView(channel, 5))

        try:
            return asyncio.run(ask())
        except errors.NodeError:
            return set()

    def holders(self, reference: str) -> set[str]:
        """The nodes that have an image, as it knows."""
        found = json.loads(self.splitd("fleet", "images", "--json", ok=None).stdout or "[]")
        return {each["name"] for image in found if image["name"] == reference for each in image["nodes"]}

    def knows(self, reference: str) -> bool:
        """Whether it knows of a node that has an image."""
        return reference in self.splitd("fleet", "images", ok=None).stdout

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        parsed = Digest.parse(digest)
        return self.root / "content/blobs" / parsed.algorithm / parsed.hex

    def wrong(self) -> list[str]:
        """The blobs whose bytes are not those of their name."""
        found = []
        for path in (self.root / "content/blobs").glob("*/*"):
            if digest_of(path.read_bytes()) != f"{path.parent.name}:{path.name}":
                found.append(path.name)
        return found

    def has(self, image: Image) -> bool:
        """Whether it has all blobs of an image, with the right bytes."""
        return all(self.blob(digest).read_bytes() == data for digest, data in image.blobs.items())

    def die(self) -> None:
        """The machine loses its power: every process of the node is killed at once, containers too."""
        inside = [
            int(pid) for pid in self.host.run("ip", "netns", "pids", self.host.namespace, stdout=-1).stdout.split()
        ]
        for pid in {*inside, *self.remains()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self.remains(), f"{self.host.name} does not die")


def runs(node: FleetMember, reference: str) -> None:
    """A container of the image runs."""
    node.ctr("run", "--rm", reference, f"c{os.urandom(4).hex()}", "grep", "-qE", "^[0-9a-f]{32}$", "/mark")


@dataclass
class Pull:
    """A pull that runs."""

    node: FleetMember
    reference: str
    process: subprocess.Popen[str]

    def end(self, seconds: float = 60.0) -> str:
        """Wait until it has ended; what it said, empty if it succeeded. An AssertionError if it hangs."""
        try:
            said, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, _ = self.process.communicate()
            raise AssertionError(
                f"{self.node.host.name}: a pull hangs: {said[-2000:]}\n{self.node.logs()[-6000:]}"
            ) from None
        return (said or "not a word") if self.process.returncode else ""

    @property
    def killed(self) -> bool:
        """Whether the command itself was killed, as with its machine."""
        return self.process.returncode < 0


class Fleet:
    """Nodes, a registry and an etcd."""

    def __init__(self, network: Network, authority: Authority, registry: Registry, etcd: Cluster) -> None:
        self.network = network
        self.authority = authority
        self.registry = registry
        self.etcd = etcd
        self.nodes: dict[str, FleetMember] = {}

    def node(self, name: str, *, fleet: bool = True, more: str = "", **settings: object) -> FleetMember:
        """A further node; :meth:`up` starts it. ``settings`` go into its [fleet], ``more`` into its configuration."""
        host = self.network.host(name)
        config = self._table(host, settings) if fleet else ""
        self.nodes[name] = FleetMember(host, config + more)
        return self.nodes[name]

    def plain(self) -> Path:
        """A config_path by which nodes know that the registry speaks plain http."""
        place = self.network.directory / "certs.d"
        hosts = place / self.registry.name / "hosts.toml"
        hosts.parent.mkdir(parents=True, exist_ok=True)
        hosts.write_text(f'server = "http://{self.registry.name}"\n')
        return place

    def _table(self, host: Host, settings: Mapping[str, object]) -> str:
        certificate, key = self.authority.issue(host.name, names=f"IP:{host.address}")
        table: dict[str, object] = {
            "name": host.name,
            "listen": f"{host.address}:{PEER_PORT}",
            "ca": str(self.authority.certificate),
            "cert": str(certificate),
            "key": str(key),
            **settings,
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
        return "\n".join(["[fleet]", *lines, "[fleet.etcd]", f"endpoints = {json.dumps(self.etcd.endpoints)}", ""])

    def up(self, *nodes: FleetMember) -> None:
        """Start nodes, by default all, and wait until they are healthy."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda node: node.up(), nodes or self.nodes.values()))

    def check(self) -> None:
        """No node has a wrong byte."""
        wrong = {name: found for name, node in self.nodes.items() if (found := node.wrong())}
        assert not wrong, f"wrong bytes: {wrong}"


@contextlib.contextmanager
def fleet(release: str = DEBIAN, *, members: int = 3) -> Iterator[Fleet]:
    """A registry and an etcd on a network of their own, for nodes to come."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network())
        authority = Authority(network.directory / "authority")
        registry = Registry(network.host("registry"))
        stack.callback(registry.close)
        hosts = [network.host(f"etcd{number}") for number in range(members)]
        directory = network.directory / "etcd"
        directory.mkdir()
        etcd = Cluster(release, directory, count=members, network=_Members(hosts))
        etcd.start()
        yield Fleet(network, authority, registry, etcd)
