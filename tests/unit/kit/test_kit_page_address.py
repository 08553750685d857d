"""kit.page_address: the addresses of pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.kit import page_address


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        (":80", ("", 80)),
        ("localhost:0", ("localhost", 0)),
        ("/run/h.sock", Path("/run/h.sock")),
    ],
)
def test_addresses(text: str, found: Path | tuple[str, int]) -> None:
    """They are written as containerd's, or as a path."""
    assert page_address.parse_address(text) == found


@pytest.mark.parametrize("text", ["", "x", "127.0.0.1", "h:", "h:70000", "::1:80", "h:8x", "/" + "x" * 107])
def test_malformed_addresses(text: str) -> None:
    """The error quotes the text."""
    with pytest.raises(ValueError, match="is neither|in brackets|longer than"):
        page_address.parse_address(text)
