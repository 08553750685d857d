"""Errors of transfers that failed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from deploy import transferring
from deploy.failure import Failure
from deploy.place import Place
from services.kit import errors, rpc


async def failing(error: errors.NodeError) -> None:
    raise error


def test_an_error_of_a_service_that_went_away_says_how_to_continue() -> None:
    """For example when it is restarted for an upgrade. Errors of a registry have their own words."""
    stopped = errors.Unavailable(
        "service images is not reachable (/containerd.services.transfer.v1.Transfer/Transfer: the service is stopping: "
        "unavailable)"
    )
    with pytest.raises(
        Failure,
        match=r"^service images is not reachable \(/containerd.services.transfer.v1.Transfer/Transfer: the service is stopping\); the same command goes on$",
    ):
        transferring.run(failing(stopped), "the same command goes on")
    with pytest.raises(errors.Unavailable, match="unavailable$"):
        transferring.run(
            failing(errors.Unavailable("failed to resolve: registry.test: 503 Service Unavailable")),
            "the same command goes on",
        )
    with pytest.raises(errors.Unavailable):
        transferring.run(failing(stopped))


@pytest.mark.parametrize(
    ("said", "named"), [("0af7651916cd43dd8448eb211c80319c", True), ("\x1b[2J", False), (b"\0", False)]
)
def test_a_failed_transfer_names_its_trace(said: str | bytes, named: bool) -> None:
    """The node says it in a trailer; what is no id is not believed."""
    error = errors.NotFound("no such image", trailers=[(rpc.TRACE, said)])
    with pytest.raises((Failure, errors.NotFound)) as raised:
        transferring.run(failing(error))
    assert str(raised.value) == "no such image: not found" + (f" (trace {said!s})" if named else "")


@pytest.mark.parametrize("said", ["has been unreachable for 5 s", "has been silent for 60 s", "went away"])
def test_each_way_to_be_away_is_known(said: str) -> None:
    """They are recognised by the gateway's words."""
    with pytest.raises(Failure, match=f"^service snapshots.overlayfs {said}; the same command goes on$"):
        transferring.run(failing(errors.Unavailable(f"service snapshots.overlayfs {said}")), "the same command goes on")


async def test_a_process_that_accepts_no_connections_is_not_waited_for_longer(place: Path) -> None:
    """A gateway was stopped, and its queue is full: a blocking connect would wait for ever, and ignore Ctrl-C."""
    here = Place(place / "root", place / "state", None)
    here.state.mkdir()
    with socket.socket(socket.AF_UNIX) as deaf, socket.socket(socket.AF_UNIX) as waiting:
        deaf.bind(str(here.socket))
        deaf.listen(0)
        waiting.connect(str(here.socket))
        with pytest.raises(Failure, match="does not answer"):
            async with transferring.channel(here, patience=0.2):
                pass
