"""supervisord's log files: which lines go where, and what happens to lines that cannot be written."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervisor import loggers

from deploy.inside.logs import LogFile


class Log:
    """A log file as supervisord makes one for a process, and a clock."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, most: int = 0, backups: int = 0) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.path, self.sizes = path, (most, backups)
        self.begin()

    def begin(self) -> None:
        """Open it for a process that is started for the first time or again."""
        self.handler = LogFile(str(self.path), "a", *self.sizes)
        self.handler.setFormat("%(message)s")

    def write(self, text: str) -> None:
        self.handler.emit(loggers.LogRecord(loggers.LevelsByName.INFO, text.encode()))

    def text(self, number: int = 0) -> str:
        return (self.path.with_name(f"{self.path.name}.{number}") if number else self.path).read_text()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """A log of 10 bytes with two rotated files."""
    (tmp_path / "x").mkdir()
    made = Log(tmp_path / "x" / "content.log", monkeypatch, 10, 2)
    yield made
    made.handler.close()


def test_what_is_written_is_there_at_once_and_a_message_has_its_format(log: Log) -> None:
    """A process's bytes are written unchanged; supervisord's own messages have its prefix, whatever characters they
    have.
    """
    log.write("one\n")
    assert log.text() == "one\n"
    log.handler.setFormat("%(levelname)s %(message)s\n")
    log.handler.emit(loggers.LogRecord(loggers.LevelsByName.WARN, "50% \udc80"))
    assert log.text() == "WARN 50% \\udc80\n"


def test_a_log_that_is_full_is_rotated_and_the_oldest_goes(log: Log) -> None:
    """It is rotated before a line for which there is no room: no line is cut in two."""
    for number in range(5):
        log.write(f"line {number}!\n")
    assert [log.text(), log.text(1), log.text(2)] == ["line 4!\n", "line 3!\n", "line 2!\n"]
    assert len(list(log.path.parent.iterdir())) == 3


def test_a_log_that_was_moved_or_deleted_is_made_again(log: Log) -> None:
    """After a deletion this is done at the next line, after a move when supervisord is told to reopen it (SIGUSR2)."""
    log.write("one\n")
    log.path.unlink()
    log.write("two\n")
    assert log.text() == "two\n"
    log.path.rename(log.path.with_name("moved"))
    log.handler.reopen()
    log.write("three\n")
    assert log.text() == "three\n"
    log.handler.remove()
    assert not log.path.exists()


def test_a_disk_that_is_gone_costs_lines_and_raises_nothing(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """There is one line on standard error in a minute. When the disk is back, the log says how much it lacks and why,
    and goes on.
    """
    shutil.rmtree(log.path.parent)
    log.write("lost\n")
    log.now += 5
    log.write("lost too\n")
    assert (
        capsys.readouterr().err
        == f"splitd: log file {log.path}: No such file or directory: lines are lost until it can be written\n"
    )
    log.now += 60
    log.write("lost\n")
    assert capsys.readouterr().err.count("\n") == 1
    log.path.parent.mkdir()
    log.now += 1
    log.write("there\n")
    assert " WARNING 19 bytes of this log were lost: No such file or directory\n" in log.text()
    assert log.text().endswith("there\n")
    log.write("again\n")
    assert log.text() == "again\n"


def test_lost_bytes_are_reported_after_a_restart_of_the_process_too(log: Log) -> None:
    """supervisord then makes a new handler of the same file; the old one's file is closed with it."""
    opened = len(os.listdir("/proc/self/fd"))
    shutil.rmtree(log.path.parent)
    log.write("lost\n")
    log.now += 1
    log.path.parent.mkdir()
    for _ in range(10):
        log.begin()
    log.write("there\n")
    assert "5 bytes of this log were lost" in log.text(1)
    assert len(os.listdir("/proc/self/fd")) <= opened


def test_a_disk_that_is_gone_is_not_asked_for_each_line(log: Log) -> None:
    """A thousand lines a second must not be a thousand errors: opening is tried once a second."""
    shutil.rmtree(log.path.parent)
    log.write("lost\n")
    log.path.parent.mkdir()
    log.write("lost\n")
    assert not log.path.exists()
    log.now += 1
    log.write("there\n")
    assert log.path.exists()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """/dev/full takes nothing and says ENOSPC."""
    (tmp_path / "log").symlink_to("/dev/full")
    log = Log(tmp_path / "log", monkeypatch)
    log.write("lost\n")
    assert "No space left on device" in capsys.readouterr().err
    (tmp_path / "log").unlink()
    log.now += 1
    log.write("there\n")
    assert "5 bytes of this log were lost: No space left on device" in log.text()
    assert log.text().endswith("there\n")


def test_a_log_that_cannot_be_rotated_goes_on_until_it_has_twice_its_size(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then lines are lost, which is better than a full disk; it is rotated as soon as that is possible."""

    def refuse(*_: object) -> None:
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", refuse)
        for _ in range(5):
            log.write("12345678\n")
            log.now += 2
    assert log.text() == "12345678\n" * 2
    log.write("there\n")
    assert log.text(1) == "12345678\n" * 2
    assert "bytes of this log were lost: Input/output error\n" in log.text()
    assert log.text().endswith("there\n")


def test_standard_error_that_is_gone_is_no_trouble(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """supervisord runs in the foreground, and its terminal is closed."""

    class Gone:
        def write(self, _: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone())
    shutil.rmtree(log.path.parent)
    log.write("lost\n")
