"""Go's regular expressions on Python's re."""

from __future__ import annotations

import pytest

from services.kit import regexp


@pytest.mark.parametrize(("pattern", "text", "found"), [
    ("b+", "abc", True),
    ("^b", "abc", False),
    ("c$", "abc", True),
    ("c$", "abc\n", False),
    (r"(?m)b$", "ab\nc", True),
    (r"(?m:b$)c$", "ab\nc", False),
    (r"c\z", "abc", True),
    (r"\Qa.b\E+", "a.bb", True),
    (r"\Qa.b\E+", "axb", False),
    ("[[:digit:]]+x", "12x", True),
    ("[[:alpha:]_-]+$", "a_-", True),
    ("^a(?i)b|c$", "aB", True),
    ("^a(?i)b|c$", "xC", True),
    ("^a(?i)b|c$", "AB", False),
    ("(?P<n>a)(?<m>b)", "ab", True),
    (r"^\d$", "٣", False),
    (r"^[\D]$", "٣", True),
    (r"^[\W]$", "é", True),
    (r"^\s$", "\v", False),
    (r"^[\S]$", "\v", True),
    (r"^\x{e9}\x41$", "éA", True),
    (r"^a{,2}$", "a{,2}", True),
    ("^[]a]$", "]", True),
    ("^[[a]$", "[", True),
    ("^[a-]$", "-", True),
    ("^[+--]$", ",", True),
    ("^[^a&&~||]$", "b", True),
    (r"^\101\.$", "A.", True),
    ("a.c", "a\nc", False),
    ("(?s)a.c", "a\nc", True),
    ("(?i)É", "é", True),
    (r"^?a\b?$*c\z?", "ac", True),
])
def test_matches_as_go_does(pattern: str, text: str, found: bool) -> None:
    """A pattern finds here what Go's MatchString finds."""
    assert (regexp.compile(pattern).search(text) is not None) is found


@pytest.mark.parametrize("pattern", ["(", ")", "a**", "a*+", "a{2}{3}", "(?=a)", "(?<!a)", r"(a)\1", r"\Z", "[a", "[b-a]", "a{1001}", "\\", "*a", r"\pL", "(?>a)", "(?P=n)", r"a\E", "[[:word"])
def test_refuses_what_go_refuses(pattern: str) -> None:
    """What Go does not compile, and the little that is not supported, is a ValueError."""
    with pytest.raises(ValueError):
        regexp.compile(pattern)
