"""Real etcd for tests: servers of Debian 12 (3.4) and of trixie (3.5), one member or three, each on ports and in a
directory of its own. The machine's own etcd, if it runs, is not touched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from tests.fake_registry import Authority
from tests.support import eventually, freeze, short_directory

DEBIAN, TRIXIE = "3.4", "3.5"
RELEASES = (DEBIAN, TRIXIE)


def program(release: str) -> Path:
    """The program of a release. The test is skipped where it is not: SPLITD_TEST_ETCD35=DIR says where trixie's
    etcd-server is unpacked.
    """
    if release == DEBIAN:
        found = shutil.which("etcd")
        if found is None:
            pytest.skip("etcd 3.4 is not here: install Debian's etcd-server (make test-machine does)")
        return Path(found)
    given = os.environ.get("SPLITD_TEST_ETCD35")
    if not given:
        pytest.skip("no etcd 3.5: name the directory of trixie's etcd-server in SPLITD_TEST_ETCD35")
    path = Path(given) / "usr/bin/etcd"
    if not path.exists():
        raise FileNotFoundError(f"SPLITD_TEST_ETCD35={given} has no usr/bin/etcd")
    return path


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Hosts(Protocol):
    """Machines for the members of a cluster, by number, and not this one."""

    def host(self, number: int) -> str:
        """The address of a machine."""
        ...

    def inside(self, number: int) -> Sequence[str]:
        """The beginning of the command line of a program that is to run there."""
        ...

    def call(self, number: int, function: Callable[[], bool]) -> bool:
        """What the function returns, called where the machine is reached."""
        ...

    def cut(self, number: int) -> None:
        """Let nobody reach it any more."""
        ...

    def mend(self, number: int) -> None:
        """Let it be reached again, if it was not."""
        ...


class Network:
    """A network namespace for each of ``count`` members, and a bridge between them and this machine, so that a member
    can be cut off: its packets are lost, and nobody is told.
    """

    def __init__(self, count: int) -> None:
        self._name = f"et{os.getpid() % 100_000}"
        self._subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._count = count

    def namespace(self, number: int) -> str:
        return f"{self._name}-{number}"

    def host(self, number: int) -> str:
        return f"{self._subnet}.{number + 2}"

    def inside(self, number: int) -> Sequence[str]:
        return "ip", "netns", "exec", self.namespace(number)

    def call(self, number: int, function: Callable[[], bool]) -> bool:
        return function()

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], text=True, capture_output=True, check=False)
        assert not done.returncode, f"ip {' '.join(words)}: {done.stderr}"

    def make(self) -> None:
        self._ip("link", "add", self._name, "type", "bridge")
        self._ip("addr", "add", f"{self._subnet}.1/24", "dev", self._name)
        self._ip("link", "set", self._name, "up")
        for number in range(self._count):
            space = self.namespace(number)
            self._ip("netns", "add", space)
            self._ip("link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
            self._ip("link", "set", space, "master", self._name, "up")
            self._ip("-n", space, "addr", "add", f"{self.host(number)}/24", "dev", "eth0")
            self._ip("-n", space, "link", "set", "eth0", "up")
            self._ip("-n", space, "link", "set", "lo", "up")

    def cut(self, number: int) -> None:
        self._ip("link", "set", self.namespace(number), "down")

    def mend(self, number: int) -> None:
        self._ip("link", "set", self.namespace(number), "up")

    def remove(self) -> None:
        for number in range(self._count):
            subprocess.run(["ip", "netns", "delete", self.namespace(number)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", self._name], capture_output=True, check=False)


class Member:
    """One etcd server. It can be killed, stopped and started again, on the same ports and data."""

    def __init__(self, cluster: Cluster, name: str, port: int, peer: int, number: int = 0) -> None:
        self.name = name
        self.port = port
        self.number = number
        host = "127.0.0.1" if cluster.network is None else cluster.network.host(number)
        self.peer = f"http://{host}:{peer}"
        self.endpoint = f"{host}:{port}"
        self.directory = cluster.directory / name
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        scheme, own, network = self._cluster.scheme, self.peer, self._cluster.network
        return [
            *(network.inside(self.number) if network is not None else []),
            str(self._cluster.program), "--name", self.name, "--data-dir", str(self.directory),
            "--listen-client-urls", f"{scheme}://{self.endpoint}", "--advertise-client-urls", f"{scheme}://{self.endpoint}",
            "--listen-peer-urls", own, "--initial-advertise-peer-urls", own,
            "--initial-cluster", ",".join(f"{m.name}={m.peer}" for m in self._cluster.members),
            "--initial-cluster-token", self._cluster.directory.name, "--logger", "zap", "--log-level", "warn",
            "--unsafe-no-fsync" if self._cluster.fast else "--log-package-levels=",
            *self._cluster.arguments,
        ]  # fmt: skip

    def start(self, *, wait: bool = True) -> None:
        with open(self._cluster.directory / f"{self.name}.log", "ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log, cwd=self._cluster.directory)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the member answers and knows a leader."""
        eventually(self._healthy, f"etcd {self.name}: {self.log()[-800:]}", 30)

    def _healthy(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"etcd {self.name} ended: {self.log()[-800:]}")
        network = self._cluster.network
        return self._answers() if network is None else network.call(self.number, self._answers)

    def _answers(self) -> bool:
        address = f"{self._cluster.scheme}://{self.endpoint}/health"
        with urllib.request.urlopen(address, timeout=1, context=self._cluster.tls) as answer:
            return b'"true"' in answer.read()

    def log(self) -> str:
        path = self._cluster.directory / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        if self.running:
            self._signal(signal.SIGKILL)
            assert self._process is not None
            self._process.wait(10)

    def end(self) -> None:
        """End it in order."""
        if self.running:
            self._signal(signal.SIGTERM)
            assert self._process is not None
            self._process.wait(20)

    def freeze(self) -> None:
        """Let it hang: its sockets are open, and nobody answers."""
        freeze(self.pid)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)


class Cluster:
    """One member or more. With an ``authority`` clients must speak TLS and show a certificate of it. ``arguments`` go
    to each server as they are; ``fast`` servers write without fsync, where the release can.
    """

    def __init__(
        self,
        release: str,
        directory: Path,
        *,
        count: int = 1,
        arguments: Sequence[str] = (),
        authority: Authority | None = None,
        network: Hosts | None = None,
    ) -> None:
        self.network = network
        self.program = program(release)
        self.release = release
        self.directory = directory
        self.fast = release != DEBIAN
        self.authority = authority
        self.scheme = "http" if authority is None else "https"
        self.arguments = list(arguments)
        self.tls: ssl.SSLContext | None = None
        """How a client speaks to the members."""
        if authority is not None:
            certificate, key = authority.issue("etcd")
            self.arguments += ["--cert-file", str(certificate), "--key-file", str(key), "--client-cert-auth"]
            self.arguments += ["--trusted-ca-file", str(authority.certificate)]
            self.tls = ssl.create_default_context(cafile=str(authority.certificate))
            self.tls.load_cert_chain(*authority.issue("health"))
        ports = _ports(2 * count)
        self.members: list[Member] = []
        self.members += [Member(self, f"m{i}", ports[2 * i], ports[2 * i + 1], i) for i in range(count)]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    def start(self) -> None:
        for member in self.members:
            member.start(wait=False)
        for member in self.members:
            member.wait()

    def stop(self) -> None:
        """End all members at once; their data is not needed any more."""
        for member in self.members:
            member.kill()

    def heal(self) -> None:
        """Start, thaw and connect what a test has harmed, and wait until all answer."""
        for member in self.members:
            if self.network is not None:
                self.network.mend(member.number)
            if member.running:
                member.thaw()
            else:
                member.start(wait=False)
        for member in self.members:
            member.wait()

    def log(self) -> str:
        return "\n".join(member.log() for member in self.members)


@contextlib.contextmanager
def etcd(
    release: str = DEBIAN,
    *,
    count: int = 1,
    arguments: Sequence[str] = (),
    authority: Authority | None = None,
    networked: bool = False,
) -> Iterator[Cluster]:
    """A running cluster; it is gone after the block, with its data. ``networked``: each member can be cut off."""
    network = Network(count) if networked else None
    with short_directory() as directory:
        cluster = Cluster(release, directory, count=count, arguments=arguments, authority=authority, network=network)
        try:
            if network is not None:
                network.make()
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            if network is not None:
                network.remove()


def version_of(release: str) -> str:
    """What the program says that it is, such as "3.4.23"."""
    said = subprocess.run([program(release), "--version"], text=True, capture_output=True, check=True).stdout
    found = re.search(r"etcd Version: (\S+)", said)
    assert found, said
    return found[1]


@contextlib.contextmanager
def records_in_etcd() -> Iterator[Callable[[], str]]:
    """A running member, and a function that returns the configuration of one more node whose records are in it."""
    numbers = itertools.count()
    with etcd() as cluster:
        where = f'[metadata]\nstore = "etcd"\n[metadata.etcd]\nendpoints = ["{cluster.endpoints[0]}"]\n'
        yield lambda: f'{where}prefix = "/node{next(numbers)}"\n'
