"""Reading for ``splitd logs``: the last lines, several logs in one, and lines that are appended meanwhile."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

from deploy import logfiles
from deploy.logfiles import Follower, in_order, last
from deploy.processes import NAMES
from tests.support import TOP


def test_the_last_lines_of_a_short_log_are_from_the_rotated_one_too(tmp_path: Path) -> None:
    """A missing log has none."""
    log = tmp_path / "x.log"
    assert last(log, 3) == []
    log.write_text("c\nd\n")
    log.with_name("x.log.1").write_text("a\nb\n")
    assert last(log, 3) == ["b", "c", "d"]
    assert last(log, 1) == ["d"]
    assert last(log, 2, end=2) == ["b", "c"]
    assert last(log, 0) == []


def test_several_logs_are_one_in_the_order_of_time() -> None:
    """A traceback stays behind its line; supervisord writes times in another format."""
    ours = ["2026-01-02T00:00:01.500 ERROR a", "Traceback", "  File", "2026-01-02T00:00:03.000 INFO b"]
    supervisors = ["2026-01-02 00:00:01,499 INFO c", "2026-01-02 00:00:02,000 INFO d"]
    assert [(name, line[-1]) for name, line in in_order([("ours", ours), ("supervisord", supervisors)])] == [
        ("supervisord", "c"),
        ("ours", "a"),
        ("ours", "k"),
        ("ours", "e"),
        ("supervisord", "d"),
        ("ours", "b"),
    ]


def test_appended_lines_are_followed_over_rotations(tmp_path: Path) -> None:
    """A line is shown when it is complete; the last lines of a file that was rotated are shown too; a log that is
    truncated is read from its start.
    """
    log = tmp_path / "x.log"
    early = Follower(log)
    assert (early.position, list(early.lines())) == (0, [])
    log.write_text("before\n")
    follower = Follower(log)
    assert follower.position == 7
    with log.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert list(follower.lines()) == ["one"]
        assert list(early.lines()) == ["before", "one"]
        log.rename(tmp_path / "x.log.1")
        assert list(follower.lines()) == []
        file.write("o\nthree\n")
    log.write_text("four\n")
    assert list(follower.lines()) == ["two", "three", "four"]
    log.write_text("5\n")
    assert list(follower.lines()) == ["5"]


def test_a_line_without_end_is_not_gathered_for_ever(tmp_path: Path) -> None:
    """It is shown in pieces."""
    log = tmp_path / "x.log"
    log.touch()
    follower = Follower(log)
    log.write_bytes(b"x" * (2 * logfiles.LONGEST + 5) + b"\n")
    found = list(follower.lines())
    assert sum(map(len, found)) == 2 * logfiles.LONGEST + 5
    assert max(map(len, found)) <= logfiles.LONGEST + logfiles.CHUNK


def test_all_services_are_followed_in_one(place: Path) -> None:
    """Each line begins with its service; a service that logs for the first time is followed too."""
    logs = place / "r" / "log"
    logs.mkdir(parents=True)
    for number, name in enumerate(NAMES[1:]):
        (logs / f"{name}.log").write_text(f"2026-01-02T00:00:0{9 - number}.000 INFO {name} began\n")
    words = ["logs", "-f", "-n", "2", "--root", str(place / "r"), "--state", str(place / "s")]
    with subprocess.Popen([sys.executable, "-m", "deploy", *words], cwd=TOP, stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        try:
            assert lines_of(following.stdout.fileno(), 2) == [
                f"{name.ljust(11)} | 2026-01-02T00:00:0{9 - NAMES[1:].index(name)}.000 INFO {name} began"
                for name in (NAMES[2], NAMES[1])
            ]
            (logs / f"{NAMES[0]}.log").write_text("2026-01-02T00:00:10.000 INFO first\n")
            assert lines_of(following.stdout.fileno(), 1) == [
                f"{NAMES[0].ljust(11)} | 2026-01-02T00:00:10.000 INFO first"
            ]
        finally:
            following.kill()


def lines_of(fd: int, count: int) -> list[str]:
    """Return so many lines, which must come within 20 s."""
    data = b""
    while data.count(b"\n") < count:
        ready, _, _ = select.select([fd], [], [], 20)
        assert ready, data
        data += os.read(fd, 65536)
    return data.decode().splitlines()
