"""Files and sockets of another containerd, and those that only resemble them."""

from __future__ import annotations

import os
import re
import socket
import threading
from pathlib import Path

import pytest

from deploy import foreign, supervision
from deploy.failure import Failure
from deploy.place import Place

CHOSEN = {"root": "--root", "state": "--state"}


@pytest.fixture
def here(place: Path) -> Place:
    node = Place(place / "r", place / "s", None)
    node.root.mkdir()
    node.state.mkdir()
    return node


def test_a_node_of_ours_is_nobody_elses(here: Place) -> None:
    """Its bundles have names as containerd's; and their remains in an empty namespace are no bundle."""
    bundle = here.state / foreign.BUNDLES / "default" / "box"
    bundle.parent.mkdir(parents=True)
    foreign.refuse(here, CHOSEN)
    bundle.mkdir()
    with pytest.raises(
        Failure,
        match=r"^the state directory \S+ is a containerd's \(io.containerd.runtime.v2.task/default/box is in it\): choose another state \(--state\)$",
    ):
        foreign.refuse(here, CHOSEN)
    here.remember()
    foreign.refuse(here, CHOSEN)


def test_a_gateway_that_is_ending_is_waited_for(here: Place) -> None:
    """Its supervisord was killed a moment ago, and its socket still answers."""
    with socket.socket(socket.AF_UNIX) as ending:
        ending.bind(str(here.socket))
        ending.listen()
        closing = threading.Timer(0.2, ending.close)
        closing.start()
        foreign.refuse(here, CHOSEN)
        closing.join()


@pytest.mark.parametrize("name", ["containerd.sock.ttrpc", "content.sock"])
def test_any_socket_that_a_node_would_take_counts(name: str, here: Place) -> None:
    """One line names the server, also if that accepts no connections; the socket of a running node does not count."""
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(here.state / name))
        theirs.listen(64)
        with pytest.raises(
            Failure,
            match=rf"^{re.escape(str(here.state / name))} is served by \S+ \(pid {os.getpid()}\), not by this node: choose another state \(--state\)$",
        ):
            foreign.refuse(here, CHOSEN, ending=0.1)
        theirs.listen(0)  # of those that have come, it takes none
        with pytest.raises(Failure, match="is served by a process that accepts no connections"):
            foreign.refuse(here, CHOSEN, ending=0.1)
        with supervision.claimed(here):
            foreign.refuse(here, CHOSEN, ending=0.1)
