"""Output without a terminal, about a transfer that waits."""

from __future__ import annotations

import io
import json

import pytest

from client.output import Json, Lines
from services.images.waits import BUDGET, HOST, PAUSE, TOKEN, Wait

SECONDS = [0, 4, 5, 6, 14, 15, 16, 24, 25]


def silent(seconds: float, host: str = "r.test") -> Wait:
    return Wait(HOST, f"{host} has sent nothing for {seconds} s", host, seconds)


def test_lines_say_it_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """They go to standard error; with --quiet there are none."""
    file = io.StringIO()
    for output in (Lines(file), Lines(file, quiet=True)):
        for seconds in SECONDS:
            output.waits(silent(seconds))
    assert capsys.readouterr().err.splitlines() == [
        f"splitd: r.test has sent nothing for {seconds} s" for seconds in (5, 15, 25)
    ]
    assert not file.getvalue()


def test_what_takes_only_a_moment_gets_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A pause is known to last, so it gets its line at once; a token and a queue get one if they take long."""
    output = Lines(io.StringIO())
    for wait in (
        Wait(PAUSE, "waiting for r.test: trying again in 0.6 s (502)", "r.test", 1, 1),
        Wait(PAUSE, "waiting for r.test: asked to wait 3 s (429)", "r.test", 1, 3),
        Wait(TOKEN, "getting a token from auth.test", "auth.test", 1),
        Wait(TOKEN, "getting a token from auth.test", "auth.test", 2),
        Wait(BUDGET, "layer 3 waits for a worker", "", 9),
    ):
        output.waits(wait)
    assert capsys.readouterr().err.splitlines() == [
        "splitd: waiting for r.test: asked to wait 3 s (429)",
        "splitd: getting a token from auth.test",
    ]


def test_json_has_lines_of_it() -> None:
    """They come as often; another host, or another wait, is reported at once."""
    file = io.StringIO()
    output = Json(file)
    for seconds in SECONDS:
        output.waits(silent(seconds))
    output.waits(silent(26, "mirror.test"))
    output.waits(silent(5, "mirror.test"))
    output.waits(Wait(PAUSE, "waiting for r.test: asked to wait 3 s (429)", "r.test", 1, 3))
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [(line["silent"], line["seconds"]) for line in lines[:-1]] == [
        ("r.test", 5),
        ("r.test", 15),
        ("r.test", 25),
        ("mirror.test", 26),
        ("mirror.test", 5),
    ]
    assert lines[-1] == {
        "waiting": "waiting for r.test: asked to wait 3 s (429)",
        "cause": "pause",
        "host": "r.test",
        "seconds": 1,
    }
