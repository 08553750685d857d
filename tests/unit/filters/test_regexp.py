"""Go's regular expressions: Go's results, and our limits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.kit import regexp


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
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
    ],
)
def test_matches_as_go_does(pattern: str, text: str, found: bool) -> None:
    """A pattern finds here what Go's MatchString finds."""
    assert regexp.compile(pattern).found_in(text) is found


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "a**",
        "a*+",
        "a{2}{3}",
        "(?=a)",
        "(?<!a)",
        r"(a)\1",
        r"\Z",
        "[a",
        "[b-a]",
        "a{1001}",
        "\\",
        "*a",
        "(?>a)",
        "(?P=n)",
        r"a\E",
        "[[:word",
    ],
)
def test_patterns_that_go_refuses_are_refused(pattern: str) -> None:
    """A pattern that Go does not compile is a ValueError, and so are the few constructs that are not supported."""
    with pytest.raises(ValueError):
        regexp.compile(pattern)


GO = json.loads((Path(__file__).parent / "go_regexps.json").read_text())
"""Go's results: for each pattern its error, or for each text whether MatchString matched."""


@pytest.mark.parametrize("pattern", GO["answers"], ids=lambda pattern: ascii(pattern)[1:41])
def test_answers_as_go(pattern: str) -> None:
    """The same patterns compile, the same texts match, and errors have the same words. Bytes that are no UTF-8 are lone
    surrogates here.
    """
    try:
        compiled = regexp.compile(pattern)
    except ValueError as error:
        answer = str(error)
    else:
        answer = "".join("1" if compiled.found_in(text) else "0" for text in GO["texts"])
    assert answer == GO["answers"][pattern]


def test_a_lone_surrogate_is_three_bad_bytes() -> None:
    """This is its length in UTF-8; a surrogate that stands for a byte is one."""
    assert regexp.compile("^...$").found_in("\ud800")
    assert regexp.compile("^.$").found_in("\udcff")


@pytest.mark.parametrize(
    "pattern",
    [
        "a" * (regexp.EXPRESSION + 1),
        "(?:" + "a" * 100 + "){1000}",
        "((a{100}){10}){1}" * 40,
        "x{1000}" * 9,
        r"\pL{1000}",
        r"\pL" * (regexp.CLASSES + 1),
        "[" + r"\pL" * (regexp.CLASSES + 1) + "]",
    ],
    ids=lambda pattern: pattern[:20],
)
def test_an_expression_is_bounded(pattern: str) -> None:
    """Its length, its program and its Unicode classes are limited, with Go's words for an expression that is too
    large.
    """
    with pytest.raises(ValueError, match="^error parsing regexp: expression too large"):
        regexp.compile(pattern)


@pytest.mark.parametrize(
    "pattern", ["a" * regexp.EXPRESSION, "x{1000}" * 8, r"\pL" * regexp.CLASSES], ids=lambda pattern: pattern[:20]
)
def test_an_expression_at_its_bounds_is_compiled(pattern: str) -> None:
    """RE2 has room for all that is within them."""
    assert not regexp.compile(pattern).found_in("123")


def test_a_match_is_bounded() -> None:
    """RE2 takes at worst instructions times characters, so the product has a limit; a costly expression on a short text
    is matched.
    """
    dear = regexp.compile("(a|b)*a(a|b){1000}c")
    assert dear.found_in("a" * 1001 + "c") is True
    with pytest.raises(ValueError, match="too large for a text of 100000 characters"):
        dear.found_in("a" * 100_000)


def test_the_size_of_patterns_is_bounded() -> None:
    """The oldest are dropped, and compiled again when they are used."""
    cache = regexp.Cache(1 << 20)
    kept = [regexp.compile(f"x{n}y", cache=cache) for n in range(20)]
    assert 0 < len(cache) <= 4
    assert cache.size <= 1 << 20
    assert all(expression.found_in(f"x{n}y") for n, expression in enumerate(kept))


def test_unused_patterns_are_dropped() -> None:
    """Each call drops the patterns that were not matched since the last call. A dropped one is compiled again when it
    is matched.
    """
    cache = regexp.Cache()
    once, often = regexp.compile("x{1000}once", cache=cache), regexp.compile("often", cache=cache)
    cache.forget_unused()
    assert often.found_in("often")
    cache.forget_unused()
    assert len(cache) == 1
    assert once.found_in("x" * 1000 + "once")
    for _ in range(2):
        cache.forget_unused()
    assert not len(cache)
    assert cache.size == 0
    assert often.found_in("often")


def test_re2_is_loaded_when_it_is_needed() -> None:
    """It costs megabytes, and hardly any filter has an expression."""
    program = (
        "import sys; from services.kit import filters; filters.parse(['a==b']); assert 're2' not in "
        "sys.modules; "
        "filters.parse(['a~=b']); assert 're2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
