"""A token server's answer, as the registry client needs it."""

from __future__ import annotations

from typing import Any

from services.kit import gojson
from services.kit.gojson import ANYTHING, TEXT, Struct

_ANSWER = Struct({"access_token": TEXT, "token": TEXT, "expires_in": ANYTHING})


def token_in(answer: bytes) -> tuple[str, float]:
    """The token, "" if there is none, and the seconds for which it is good, 0 if that is not said.
    gojson.Malformed for what is no JSON of an answer.
    """
    found = gojson.read(answer, _ANSWER, mark=True, first=True)
    return found.get("access_token") or found.get("token") or "", _seconds(found.get("expires_in"))


def _seconds(value: Any) -> float:
    """A number, which some servers write as a string; 0 for what is none."""
    try:
        return float(value) if isinstance(value, int | float | str) else 0.0
    except ValueError:
        return 0.0
