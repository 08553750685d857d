"""``splitd replace``, ``restore`` and ``routes`` beside a gateway: what they print, and their exit codes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ServiceProcess, short_directory, splitd, within

pytestmark = [pytest.mark.once, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A gateway, metadata and content at ``r`` and ``s``, and another content store at ``e``."""
    with short_directory() as found, contextlib.ExitStack() as stack:
        for module, root, state, sockets in (
            ("services.metadata", "r", "s", ()),
            ("services.content", "r", "s", ()),
            ("services.content", "er", "e", ()),
            ("gateway", "r", "s", ("internal.sock",)),
        ):
            stack.enter_context(ServiceProcess(module, found / root, found / state, sockets=sockets))
        yield found


def run(place: Path, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    return splitd(*words, "--root", place / "r", "--state", place / "s", ok=ok)


def test_a_candidate_comes_is_shown_and_goes(place: Path) -> None:
    """Each command says what is true from now on."""
    address = place / "e" / "content.sock"
    said = run(
        place, "replace", "content", "--address", str(address), "--name", "mine", "--share", "10%", "--back-at", "5%",
        "--for", "namespace=a", "--for", "namespace=b",
    ).stdout  # fmt: skip
    assert f"content: mine at {address} takes new objects: 10% of namespace a and b, back at 5% failures\n" in said
    shown = [line.split() for line in run(place, "routes").stdout.splitlines()]
    assert ["content", "own", f"{place}/s/content.sock", "up", "the", "rest", "-", "-", "-"] in shown
    assert next(line for line in shown if line[:2] == ["content", "mine"])[2:6] == [str(address), "up", "10%", "of"]
    found = {each["name"]: each for each in json.loads(run(place, "routes", "--json").stdout)}
    (candidate,) = found["content"]["candidates"]
    assert (candidate["backend"], candidate["share"], candidate["state"]) == ("content@mine", 10.0, "up")
    assert found["metadata"]["candidates"] == []
    said = run(place, "replace", "content", "--address", f"{place}/moved.sock", "--name", "mine").stdout
    assert f"it was at {address} before: its 0 objects must be in the same store" in said
    assert "it is down (service content@mine has been unreachable" in said
    assert "content@mine is down: service content@mine has been unreachable" in run(place, "routes").stdout
    assert run(place, "restore", "content").stdout == "content: mine takes no new objects any more\n"


def test_a_shadow_has_the_units_of_routes(place: Path) -> None:
    """A share is in percent, a moment in seconds since 1970."""
    before = time.time()
    run(place, "shadow", "content", "--address", str(place / "e" / "content.sock"), "--share", "12.5%")
    (listed,) = json.loads(run(place, "shadow", "list", "--json").stdout)
    assert listed["share"] == 12.5
    assert before - 1 < listed["since"] < time.time() + 1
    assert "12.5%" in run(place, "shadow", "list").stdout
    (report,) = json.loads(run(place, "shadow", "stop", "content", "--json").stdout)
    assert report["shadow"] == listed


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("restore", "diff"), 1, "diff has no candidate: all its calls go to its own service"),
        (("restore", "content", "--yes"), 2, "--yes is for --forget"),
        (("replace", "nothing", "--address", "/x.sock"), 1, "there is no route 'nothing': the routes of this node are"),
        (("replace", "content", "--address", "x"), 1, "address: 'x' is neither /path nor unix:///path of a socket"),
        (("replace", "content", "--address", "/x", "--share", "much"), 2, "'much' is no percentage such as 10%"),
        (("replace", "content", "--address", "/x", "--share", "0%"), 2, "'0%': it is more than 0% and at most 100%"),
        (("replace", "content", "--address", "/x", "--back-at", "0"), 2, "'0': it is more than 0%"),
        (("replace", "content", "--address", "/x", "--until", "0s"), 2, "'0s': it is longer than 0"),
        (("replace", "content", "--address", "/x", "--until", "soon"), 2, "'soon' is not a duration such as 100ms"),
        (("replace", "content", "--address", "/x", "--for", "image=x"), 2, "'image=x' is no selector: namespace=NAME"),
        (("replace", "images", "--address", "/x", "--share", "5%"), 1, "images takes no share: the streams of a"),
    ],
)
def test_what_cannot_be_done_is_one_line(place: Path, words: tuple[str, ...], code: int, said: str) -> None:
    """It says what is wrong; nothing has changed."""
    done = run(place, *words, ok=False)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_node_it_says_how_to_start_one(place: Path) -> None:
    """At once; the exit code is that of every verb."""
    with within(4):
        done = splitd("routes", "--root", place / "x", "--state", place / "y", ok=False)
    assert (done.returncode, done.stderr.count("no node is up at")) == (3, 1)
