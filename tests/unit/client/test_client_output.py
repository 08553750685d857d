"""Output without a terminal, about a transfer that waits for a silent host."""

from __future__ import annotations

import io
import json

import pytest

from client.output import Json, Lines

SECONDS = [5, 6, 14, 15, 16, 24, 25]


def test_lines_say_it_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """They go to standard error; with --quiet there are none."""
    file = io.StringIO()
    for output in (Lines(file), Lines(file, quiet=True)):
        for seconds in SECONDS:
            output.silent("r.test", seconds)
    assert capsys.readouterr().err.splitlines() == [
        f"splitd: r.test has been silent for {seconds} s, and is waited for" for seconds in (5, 15, 25)
    ]
    assert not file.getvalue()


def test_json_has_lines_of_it() -> None:
    """They come as often; another host, or another time of silence, is reported at once."""
    file = io.StringIO()
    output = Json(file)
    for seconds in SECONDS:
        output.silent("r.test", seconds)
    output.silent("mirror.test", 26)
    output.silent("mirror.test", 5)
    assert [json.loads(line) for line in file.getvalue().splitlines()] == [
        *({"silent": "r.test", "seconds": seconds} for seconds in (5, 15, 25)),
        {"silent": "mirror.test", "seconds": 26},
        {"silent": "mirror.test", "seconds": 5},
    ]
