"""Logging: levels, a line for each failed call, and the bound on their number."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys

import pytest

from services.kit import errors, logs

LINES = (
    "import logging; from services.kit import logs; logs.configure(); "
    "logging.getLogger('services.x').debug('ours'); logging.getLogger('hpack.hpack').debug('theirs')"
)


def said(level: str | None) -> str:
    """Return the output of a process with this SPLITD_LOG when it and a library log something at DEBUG."""
    environment = {k: v for k, v in os.environ.items() if k != "SPLITD_LOG"} | (
        {"SPLITD_LOG": level} if level is not None else {}
    )
    return subprocess.run(
        [sys.executable, "-c", LINES], env=environment, check=True, capture_output=True, text=True, timeout=60
    ).stderr


def test_debug_is_ours_and_no_librarys() -> None:
    """At DEBUG hpack alone wrote a thousand lines for each of ours."""
    text = said("debug")
    assert "ours" in text
    assert "theirs" not in text


def test_info_is_the_level_without_one() -> None:
    """It is also the level with an empty value."""
    assert said(None) == said("") == ""


def test_a_mistyped_level_is_reported_once_and_stops_no_process() -> None:
    """The message lists the levels; INFO is used."""
    (line,) = said("DEBGU").splitlines()
    assert "SPLITD_LOG=DEBGU is no level (DEBUG, INFO, WARNING, ERROR, CRITICAL): INFO is used" in line


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logs, "_lines", logs._Lines(3, 0.0))
    caplog.set_level(logging.INFO, "services")
    return caplog


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (errors.Unavailable("service content"), "WARNING"),
        (errors.Unknown("shim said no"), "WARNING"),
        (errors.ResourceExhausted("x"), "WARNING"),
        (errors.InvalidArgument("bad name"), "INFO"),
        (errors.FailedPrecondition("namespace is required"), "INFO"),
        (errors.NotFound("image x"), None),
        (errors.AlreadyExists("image x"), None),
        (errors.Cancelled(), None),
    ],
)
def test_a_failed_call_leaves_a_line(
    lines: pytest.LogCaptureFixture, error: errors.NodeError, level: str | None
) -> None:
    """Calls by which clients find out what exists leave none, nor do calls that their clients ended."""
    logs.failed("/s/M", "default", error)
    assert [r.levelname for r in lines.records] == ([level] if level else [])
    if level:
        assert lines.messages == [f"/s/M in namespace default failed: {error} ({errors.name(error.code)})"]


def test_thousands_of_failed_calls_leave_a_few_lines_and_their_number(lines: pytest.LogCaptureFixture) -> None:
    """Clients decide how many of their calls fail."""
    for _ in range(1000):
        logs.failed("/s/M", "", errors.Unknown("no"))
    assert len(lines.records) == 3
    logs._lines._bucket.give(1)
    logs.failed("/s/M", "", errors.Unknown("at last"))
    assert lines.messages[3:] == [
        "997 more calls failed; they were too many to log each",
        "/s/M failed: at last (UNKNOWN)",
    ]


def test_a_client_writes_no_lines_of_its_own(lines: pytest.LogCaptureFixture) -> None:
    """Line ends and escape sequences in clients' strings are escaped, and long strings are cut."""
    logs.failed("/s/M\n2026 ERROR", "\x1b[31m", errors.InvalidArgument("a\nb" + "x" * 5000))
    (line,) = lines.messages
    assert line.isprintable()
    assert "/s/M\\n2026 ERROR in namespace \\x1b[31m failed: a\\nb" in line
    assert len(line) < 2500


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, errors.ResourceExhausted),
        (errno.EDQUOT, errors.ResourceExhausted),
        (errno.EROFS, errors.Unknown),
        (errno.EIO, errors.Unknown),
        (errno.EMFILE, errors.Unknown),
    ],
)
def test_errors_of_the_machine_are_no_defects(number: int, kind: type[errors.NodeError]) -> None:
    """The message has the kernel's words, and the path if it is known."""
    found = errors.of_machine(OSError(number, os.strerror(number), "/run/x"), "create task t")
    assert type(found) is kind
    words = os.strerror(number)
    assert str(found).startswith(f"create task t: /run/x: {words[:1].lower()}{words[1:]}")


def test_any_other_exception_is_one() -> None:
    """A missing file, for example: the code should have expected it."""
    assert errors.of_machine(FileNotFoundError(errno.ENOENT, "x"), "y") is None
    assert errors.of_machine(ValueError("x"), "y") is None


def test_codes_have_the_names_that_grpc_gives_them() -> None:
    """They are the same in logs and in messages."""
    assert [errors.name(code) for code in (2, 5, 6, 8, 14)] == [
        "UNKNOWN",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
    ]
