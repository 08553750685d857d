"""The network of the tests of a fleet does what those tests rely on, and leaves nothing behind."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit import errors
from tests.fleets import processors
from tests.fleets.keeper import named
from tests.fleets.network import Host, Network
from tests.support import TOP, eventually

SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], 5000))
print("up", flush=True)
while True:
    connection, _ = server.accept()
    with connection:
        connection.sendall(bytes(int(connection.recv(64))))
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000), timeout=float(sys.argv[3])) as connection:
    connection.sendall(sys.argv[2].encode())
    left = int(sys.argv[2])
    while left and (data := connection.recv(min(left, 1 << 20))):
        left -= len(data)
    sys.exit(left != 0)
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as running:
        yield running


@pytest.fixture(scope="module")
def hosts(network: Network) -> list[Host]:
    """Three hosts, of which the first serves as many bytes as it is asked for."""
    found = [network.host(name) for name in ("one", "two", "three")]
    server = found[0].start(sys.executable, "-c", SERVER, found[0].address, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == "up\n"
    return found


def fetch(host: Host, source: Host, size: int, seconds: float = 20.0) -> int:
    """The exit code of a client on ``host`` that fetches so many bytes."""
    done = host.run(
        sys.executable, "-c", CLIENT, source.address, str(size), str(seconds), check=False, capture_output=True
    )
    return done.returncode


def test_a_limited_host_sends_at_its_rate_and_its_bytes_are_counted(hosts: list[Host]) -> None:
    one, two, _ = hosts
    one.limit(10_000_000)
    before, began = one.sent(), time.perf_counter()
    try:
        assert fetch(two, one, 10_000_000) == 0
    finally:
        one.limit(None)
    assert time.perf_counter() - began > 0.9
    assert 10_000_000 <= one.sent() - before < 10_500_000


def test_a_cut_parts_two_hosts_and_no_others(network: Network, hosts: list[Host]) -> None:
    one, two, three = hosts
    with network.parted(one, two):
        assert fetch(two, one, 1000, 0.5) != 0
        assert fetch(three, one, 1000) == 0
    assert fetch(two, one, 1000) == 0


def test_an_unplugged_host_hears_nobody_until_it_is_plugged_in(hosts: list[Host]) -> None:
    one, two, three = hosts
    two.unplug()
    try:
        assert fetch(two, one, 1000, 0.5) != 0
        assert fetch(three, one, 1000) == 0
    finally:
        two.plug()
    assert fetch(two, one, 1000) == 0


def test_a_function_that_is_called_on_a_host_has_that_hosts_network(hosts: list[Host]) -> None:
    """Its thread alone: the process stays on the machine's network."""

    def connect() -> str:
        with socket.create_connection((hosts[0].address, 5000), timeout=20) as connection:
            return str(connection.getsockname()[0])

    assert hosts[1].call(connect) == hosts[1].address
    with socket.socket() as here, pytest.raises(OSError, match="assign"):
        here.bind((hosts[1].address, 0))


BUSY = """
import subprocess, sys, time
other = subprocess.Popen([sys.executable, *sys.argv[1:]]) if sys.argv[1:] else None
begun = time.monotonic()
while time.monotonic() < begun + 1.5:
    pass
if other is not None:
    sys.exit(other.wait())
"""


def test_a_host_has_a_share_of_the_processors(network: Network) -> None:
    """All that runs there has it together, with what that has started. What is measured is what it has taken."""
    host = network.host("four")
    try:
        host.share(0.2)
    except errors.FailedPrecondition as error:
        pytest.skip(str(error))
    began = time.monotonic()
    host.run(sys.executable, "-c", BUSY, "-c", BUSY)
    passed, used = time.monotonic() - began, host.used()
    assert 0.05 < used < 0.2 * passed * 1.1 + 0.1
    with pytest.raises(ValueError, match="the least is 0.05"):
        host.share(0.01)
    host.share(None)
    host.run(sys.executable, "-c", "while __import__('time').process_time() < 0.3: pass")
    assert host.used() > used + 0.3


KILLED = """
import contextlib, os, signal, sys
from services.kit import errors
from tests.fleets.network import Network
network = Network()
host = network.host("one")
with contextlib.suppress(errors.FailedPrecondition):
    host.share(0.5)
host.start("sleep", "1000")
print(network.prefix, network.directory, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_test_leaves_no_namespace_and_no_process() -> None:
    """No cgroup either. The keeper sees the end of its pipe, also after a SIGKILL of the test's process group."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=TOP, capture_output=True, text=True, timeout=60, check=False
    )
    prefix, directory = done.stdout.split()
    eventually(lambda: not named(prefix), f"{prefix}* is still there", 30)
    eventually(lambda: not Path(directory).exists(), f"{directory} is still there")
    assert not list(processors.groups(prefix))
