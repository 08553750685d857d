"""A network of hosts on one machine: each is a network namespace, and all are on one switch, a bridge in a namespace of
its own. The machine's own network is not touched, and several such networks exist side by side with the same addresses.

What happens to a network happens to this one: a link is slow (:meth:`Host.limit`), a cable is pulled (:meth:`Host.unplug`),
and two hosts do not hear each other any more though both hear all others (:meth:`Network.cut`). This kernel has
neither netem nor classifiers, nor does it need iptables: a cut makes each of the two send its frames for the other to a
station that does not exist, so they vanish in silence, as behind a broken switch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.fleets.processors import Group
from tests.support import TOP

T = TypeVar("T")

NET = "10.77.0"
NOBODY = "02:00:00:00:00:01"
"""The address of a station that is on no network of ours."""
CLONE_NEWNET = 0x40000000
"""Of <sched.h>; Python has it from 3.12 on."""
CLEARED = 60.0
"""Seconds within which the keeper has cleared everything."""


class Host:
    """A network namespace with a link to the switch. Programs run in it by :meth:`start` and :meth:`run`; of their
    environment only the network differs from ours: files and sockets of files are the machine's.
    """

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.network, self.name, self.address = network, name, f"{NET}.{number}"
        self.namespace = f"{network.prefix}{name}"
        self.inside: tuple[str, ...] = ("nsenter", f"--net=/run/netns/{self.namespace}")
        """The beginning of the command line of a program that is to run here."""
        self._group: Group | None = None
        _ip("netns", "add", self.namespace)
        _ip(
            "link",
            "add",
            "name",
            name,
            "netns",
            network.switch,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.namespace,
        )
        _ip("-n", network.switch, "link", "set", "dev", name, "master", "switch", "up")
        self._own("address", "add", f"{self.address}/24", "dev", "eth0")
        self._own("link", "set", "lo", "up")
        self._own("link", "set", "eth0", "up")

    def start(self, *words: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start a program here."""
        return subprocess.Popen([*self.inside, *map(str, words)], text=True, **options)

    def run(self, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end."""
        options = {"timeout": 60, **options}
        check = options.pop("check", True)
        return subprocess.run([*self.inside, *map(str, words)], text=True, check=check, **options)

    def call(self, function: Callable[[], T]) -> T:
        """What the function returns that is called here: the sockets that it makes are on this host's network."""
        with ThreadPoolExecutor(1, initializer=self._enter) as pool:
            return pool.submit(function).result()

    def _enter(self) -> None:
        """Move this thread here. Only the thread: Linux keeps a network namespace for each."""
        with open(f"/run/netns/{self.namespace}", "rb") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns to {self.namespace}")

    def limit(self, rate: int | None) -> None:
        """What it sends goes out at ``rate`` bytes a second, from now on; None: without a limit."""
        if rate is None:
            self.run("tc", "qdisc", "del", "dev", "eth0", "root")
            return
        # The burst is what a timer's tick lets through at this rate, or one packet of 64 KiB before it is segmented.
        burst = max(rate // 100, 128 << 10)
        bucket = ("rate", f"{rate * 8}bit", "burst", str(burst), "limit", str(burst + rate // 10))
        self.run("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *bucket)

    def share(self, processors: float | None) -> None:
        """What was started here since the first call has so many of the machine's processors together, from now on; None:
        all that are free. FailedPrecondition where cgroups cannot do it.
        """
        if self._group is None:
            self._group = Group(self.namespace)
            self.inside = (*self._group.inside, *self.inside)
        self._group.limit(processors)

    def used(self) -> float:
        """Seconds of a processor that have been taken by what has a share (:meth:`share`)."""
        return 0.0 if self._group is None else self._group.used()

    def sent(self) -> int:
        """Bytes that have left it so far, with all headers."""
        return self._bytes("tx")

    def received(self) -> int:
        """Bytes that have come so far, with all headers."""
        return self._bytes("rx")

    def unplug(self) -> None:
        """Its cable is pulled: it has no carrier."""
        _ip("-n", self.network.switch, "link", "set", "dev", self.name, "down")

    def plug(self) -> None:
        """The cable is back."""
        _ip("-n", self.network.switch, "link", "set", "dev", self.name, "up")

    def _bytes(self, which: str) -> int:
        done = subprocess.run(
            ["ip", "-n", self.namespace, "-s", "-j", "link", "show", "eth0"], capture_output=True, check=True
        )
        return int(json.loads(done.stdout)[0]["stats64"][which]["bytes"])

    def _own(self, *words: str) -> None:
        _ip("-n", self.namespace, *words)

    def deaf_to(self, other: Host) -> None:
        """What it sends to the other vanishes."""
        self._own("neighbour", "replace", other.address, "lladdr", NOBODY, "nud", "permanent", "dev", "eth0")

    def hears(self, other: Host) -> None:
        """What it sends to the other arrives again."""
        self._own("neighbour", "del", other.address, "dev", "eth0")


class Network:
    """The switch and its hosts, with a directory for their files. A context manager: at its end, and at a SIGKILL of
    this process too, everything that runs on a host is killed and everything is removed (tests/fleets/keeper.py).
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sf", dir=os.environ.get("SPLITD_TEST_DIR", "/tmp")))
        self.prefix = f"{self.directory.name}-"
        self.switch = f"{self.prefix}switch"
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.fleets.keeper", self.prefix, str(self.directory)],
            cwd=TOP,
            stdin=subprocess.PIPE,
            start_new_session=True,  # what kills the group of the test does not kill it
        )
        self.hosts: dict[str, Host] = {}
        try:
            _ip("netns", "add", self.switch)
            _ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
            _ip("-n", self.switch, "link", "set", "switch", "up")
        except BaseException:
            self.close()
            raise

    def host(self, name: str) -> Host:
        """A new host; ``name`` has at most 15 characters, as the name of a link."""
        self.hosts[name] = Host(self, name, len(self.hosts) + 1)
        return self.hosts[name]

    def cut(self, one: Host, other: Host) -> None:
        """From now on neither hears the other. Nothing tells them."""
        one.deaf_to(other)
        other.deaf_to(one)

    def mend(self, one: Host, other: Host) -> None:
        """They hear each other again."""
        one.hears(other)
        other.hears(one)

    @contextlib.contextmanager
    def parted(self, one: Host, other: Host) -> Iterator[None]:
        """They do not hear each other during the block."""
        self.cut(one, other)
        try:
            yield
        finally:
            self.mend(one, other)

    def close(self) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        assert self._keeper.wait(CLEARED) == 0, f"the keeper of {self.prefix} has left something: see above"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
