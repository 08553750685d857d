"""The receiver of heartbeats inside supervisord: it knows their senders, and no failure in it reaches supervisord's
loop.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from supervisor.states import ProcessStates

from deploy.inside.beats import Beats
from deploy.inside.watchdog import Limits


class Logger:
    """A fake of supervisord's logger that keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)

    def critical(self, line: str) -> None:
        self.lines.append(line)


def process(name: str, pid: int, state: int = ProcessStates.RUNNING) -> Any:
    return SimpleNamespace(pid=pid, get_state=lambda: state, dispatchers={}, config=SimpleNamespace(name=name))


class Heard(Beats):
    """The watchdog of a supervisord whose only process is this one."""

    def __init__(self, directory: Path) -> None:
        self.logger = Logger()
        self.groups = {"content": SimpleNamespace(processes={"content": process("content", os.getpid())})}
        self.path = str(directory / "watchdog.sock")
        super().__init__(
            SimpleNamespace(options=SimpleNamespace(logger=self.logger), process_groups=self.groups),
            self.path,
            Limits(30.0, 300.0, 3.0),
        )

    def serving(self) -> bool:
        return self._watchdog.watched["content"].serving


@pytest.fixture
def beats(place: Path) -> Iterator[Heard]:
    made = Heard(place)
    yield made
    made.socket.close()


def send(path: str, *words: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        for word in words:
            out.sendto(word, path)


def test_a_beat_is_its_senders(beats: Heard) -> None:
    """The kernel names the sender; a heartbeat of an unknown process counts for none."""
    beats.readable()
    child = os.fork()
    if not child:
        try:
            send(beats.path, b"READY=1")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    beats.handle_read_event()
    assert not beats.serving()
    send(beats.path, b"READY=1", b"WATCHDOG=1")
    beats.handle_read_event()
    assert beats.serving()
    send(beats.path, b"STOPPING=1")
    beats.handle_read_event()
    assert not beats.serving()


def test_the_socket_is_roots_alone_and_takes_the_place_of_an_older_one(beats: Heard, place: Path) -> None:
    """A supervisord that was killed has left its own socket."""
    assert os.stat(beats.path).st_mode & 0o777 == 0o600
    again = Heard(place)
    again.readable()
    send(again.path, b"READY=1")
    again.handle_read_event()
    assert again.serving()
    again.socket.close()


def test_a_failure_is_logged_once_and_ends_nothing(beats: Heard) -> None:
    """An exception would end supervisord and the node; a line for each turn of its loop would fill the log."""
    beats.groups["broken"] = SimpleNamespace()
    assert beats.readable()
    assert beats.readable()
    assert len(beats.logger.lines) == 1
    assert "watchdog: AttributeError" in beats.logger.lines[0]
    del beats.groups["broken"]
    assert beats.readable()
    assert list(beats._watchdog.watched) == ["content"]


def test_only_processes_that_there_are_are_watched(beats: Heard) -> None:
    """These are the processes that supervisord has started and whose end it has not yet seen."""
    for name, pid, state in (
        ("a", 0, ProcessStates.STOPPED),
        ("b", 7, ProcessStates.EXITED),
        ("c", 8, ProcessStates.STARTING),
        ("d", 9, ProcessStates.STOPPING),
    ):
        beats.groups[name] = SimpleNamespace(processes={name: process(name, pid, state)})
    assert [(child.name, child.stopping) for child in beats._children()] == [
        ("content", False),
        ("c", False),
        ("d", True),
    ]


def test_ends_are_counted(beats: Heard) -> None:
    """They are counted by name for ``splitd status``, since the log may have been rotated or lost."""
    event = SimpleNamespace(process=process("content", 0, ProcessStates.EXITED))
    beats.ended(event)
    beats.ended(event)
    assert beats.status() == [{"name": "content", "ended": 2, "silent": 0.0, "killed": 0, "why": "", "at": 0.0}]
