"""``splitd new``: what it writes, and what it refuses."""

from __future__ import annotations

import configparser
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import beginning, place
from deploy.failure import Failure

PROGRAMS = {"snapshotter": "overlay.py", "content": "blobs.py"}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_service_is_an_example_that_can_be_started(kind: str, tmp_path: Path) -> None:
    """The program is the example behind a first line that starts it; the other files name it."""
    directory = tmp_path / "some where"
    files = beginning.begin(kind, "my-own", directory)
    assert {file.name for file in files} == {"my_own.py", "test_my_own.py", "my-own.conf", "README.md"}
    first, rest = files[0].read_text().split("\n", 1)
    assert first.startswith("#!")
    assert rest == (place.TOP / "examples" / PROGRAMS[kind]).read_text()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    shown = subprocess.run(
        [str(files[0]), "--help"], env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--address" in shown.stdout
    compile(files[1].read_text(), files[1], "exec")
    assert len((directory / "README.md").read_text().splitlines()) <= 14
    conf = configparser.ConfigParser(inline_comment_prefixes=(";", "#"))
    conf.read(directory / "my-own.conf")
    assert f"'{files[0]}' --root /var/lib/my-own" in conf["program:my-own"]["command"]
    assert not [file for file in files if "$" in file.read_text()], "a placeholder was not filled in"


def test_every_kind_that_the_verb_knows_has_an_example() -> None:
    """Each of the examples is one."""
    assert {kind.example for kind in beginning.KINDS.values()} == {
        path.name for path in (place.TOP / "examples").glob("*.py")
    }
    assert set(beginning.KINDS) == set(PROGRAMS)


@pytest.mark.parametrize("file", ["mine.py", "test_mine.py", "mine.conf", "README.md"])
def test_nothing_is_overwritten(file: str, tmp_path: Path) -> None:
    """If one of the files exists, even as a link to nothing, none is written."""
    (tmp_path / file).symlink_to("nothing")
    with pytest.raises(Failure, match=f"{file} exists, and nothing is overwritten"):
        beginning.begin("content", "mine", tmp_path)
    assert os.listdir(tmp_path) == [file]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "no name"),
        ("../x", "no name"),
        ("X", "no name"),
        ("a_b", "no name"),
        ("a--b", "no name"),
        ("-a", "no name"),
        ("1a", "no name"),
        ("a.b", "no name"),
        ("a\n", "no name"),
        ("a" * 33, "no name"),
        ("select", "a module 'select'"),
        ("splitd", "a module 'splitd'"),
        ("services", "a module 'services'"),
        ("aiohttp", "a module 'aiohttp'"),
    ],
)
def test_names_that_are_refused(name: str, why: str, tmp_path: Path) -> None:
    """A name is one for files, sockets and Python, and hides no module that the program needs."""
    with pytest.raises(Failure, match=why) as refused:
        beginning.begin("content", name, tmp_path / "d")
    assert refused.value.code == 2
    assert not (tmp_path / "d").exists()


def test_where_splitd_is_installed_its_python_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a clone the program's first line names the clone; in an environment that has splitd, only its Python."""
    assert (
        beginning.begin("content", "one", tmp_path)[0]
        .read_text()
        .startswith(f"#!/usr/bin/env -S PYTHONPATH={place.TOP} {sys.executable}\n")
    )
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(place.TOP)])
    assert beginning.begin("content", "two", tmp_path / "2")[0].read_text().startswith(f"#!{sys.executable}\n")
    monkeypatch.setattr(sys, "executable", "/opt/a b/bin/python")
    assert (
        beginning.begin("content", "three", tmp_path / "3")[0]
        .read_text()
        .startswith('#!/usr/bin/env -S "/opt/a b/bin/python"\n')
    )
    monkeypatch.setattr(sys, "executable", f"/opt/{'n' * 300}/python")
    with pytest.raises(Failure, match="a program's first line cannot name"):
        beginning.begin("content", "four", tmp_path / "4")
