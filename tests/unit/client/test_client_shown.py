"""Text for a terminal is written in one place, and strings from outside cannot control the terminal."""

from __future__ import annotations

import ast
import io
import unicodedata
from pathlib import Path

import pytest

from client import bars, shown
from client.progress import Part, Stage, Tally
from deploy.splitd import run

TOP = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("Füße 鯨 🐳 a\u00a0b", "Füße 鯨 🐳 a\u00a0b"),
        (r"C:\x", r"C:\x"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("\x7f\0", r"\x7f\x00"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("\u2066\u2069\u200f\u061c", r"\u2066\u2069\u200f\u061c"),
        ("\u2028\u2029\ufeff\u00ad", r"\u2028\u2029\ufeff\xad"),
        ("\ud800\udcff", r"\ud800\udcff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_escapes(text: str, line: str) -> None:
    """Control characters of both kinds, format characters, surrogates and line ends are escaped. All others stay."""
    assert shown.escaped(text) == line


def test_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    """For every character a line stays one line."""
    text = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE0200))))
    shown.say(text)
    out = capsys.readouterr().out
    assert out.endswith("\n")
    assert not {c for c in out[:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


def test_a_table_and_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    """A cell is one line; a page has its own lines and tabs."""
    shown.table([("NAME", "X"), ("a\nb", "\x1b[1m")])
    assert capsys.readouterr().out == "NAME  X\na\\nb  \\x1b[1m\n"
    shown.page("one\n\ttwo\x1b[2J\nthree\r\n")
    assert capsys.readouterr().out == "one\n\ttwo\\x1b[2J\nthree\\r\n"


def test_a_long_cell_makes_its_own_row_longer(capsys: pytest.CaptureFixture[str]) -> None:
    """Its length is limited: an archive may give an image a name of megabytes."""
    shown.table([("NAME", "SIZE"), ("short", "1"), ("a" * 400, "2"), ("b" * 1_000_000, "3")])
    head, short, long, huge = capsys.readouterr().out.splitlines()
    assert (head, short) == ("NAME".ljust(shown.WIDEST) + "  SIZE", "short".ljust(shown.WIDEST) + "  1")
    assert long == "a" * 400 + "  2"
    assert huge == "b" * shown.LONGEST + "...  3"


def test_bars() -> None:
    """Titles and parts of a transfer."""
    tally = Tally(0.0)
    lines = bars.lines(tally, "pulling a\x1b[2Jb", 1.0, 80, 24)
    assert lines == [r"pulling a\x1b[2Jb  1.0 s"]
    assert "\x1b" not in bars._part(Part("manifest-\x1b[2J\n", stage=Stage.DOWNLOADING), 0.0, 80)


def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped word comes from outside too."""
    assert run(["st\x1b[2Jatus\nsplitd: all is well"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert error.count("\n") == 1


def test_a_question_is_shown_as_any_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer stands beside it; the end of the input is no answer."""
    monkeypatch.setattr("sys.stdin", io.StringIO(" Yes \n"))
    assert shown.ask("forget a\x1b[2Jb? [y/N]") == "Yes"
    assert capsys.readouterr().out == r"forget a\x1b[2Jb? [y/N] "
    assert not shown.ask("again?")


def test_nothing_else_prints() -> None:
    """Of the commands, only client/shown.py prints; JSON has its own escapes."""
    found = []
    for path in (*(TOP / "client").rglob("*.py"), *(TOP / "deploy/verbs").rglob("*.py"), TOP / "deploy/splitd.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "print"
                and path.name != "shown.py"
            ):
                (argument, *_) = node.args
                if not (isinstance(argument, ast.Call) and ast.unparse(argument.func) == "json.dumps"):
                    found.append(f"{path.relative_to(TOP)}:{node.lineno}")
    assert found == []
