"""Attributes as JSON."""

from __future__ import annotations

import json
import math

from services.traces import plain
from services.traces.store import Value


def test_all_kinds_have_a_form() -> None:
    """What JSON has no word for is text."""
    given: dict[str, Value] = {"b": b"\xff", "f": math.inf, "n": None, "l": [1, None, b"x"], "m": {"a": True}, "t": "ä"}
    assert plain.from_json(plain.to_json(given)) == {
        "b": "/w==",
        "f": "inf",
        "n": None,
        "l": [1, None, "eA=="],
        "m": {"a": True},
        "t": "ä",
    }
    assert plain.from_json("") == plain.from_json(plain.to_json({})) == {}


def test_it_is_short() -> None:
    """Texts, lists, and all together."""
    given: dict[str, Value] = {"long": "x" * 5000, "many": [*range(10_000)], **{f"{n}": "y" * 900 for n in range(100)}}
    text = plain.to_json(given)
    assert len(text) < plain.ALL + 1000
    found = json.loads(text)
    assert found["long"] == "x" * plain.TEXT + "..."
    assert found["many"] == "..."
    assert found["0"] == "y" * 900
