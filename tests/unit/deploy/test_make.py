"""``make clean`` keeps the environment from which a node runs, on any machine; ``make fuzz`` runs for the requested
time; ``make test`` runs each test once.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.side_by_side import parted
from tests.support import TOP


def test_clean_needs_no_procps_to_see_that_a_node_runs(tmp_path: Path) -> None:
    """Without pgrep, processes that run from .venv are found and named, and .venv is kept; afterwards it is removed."""
    shutil.copy(TOP / "Makefile", tmp_path)
    programs, python = tmp_path / "bin", tmp_path / ".venv/bin/python"
    programs.mkdir()
    python.parent.mkdir(parents=True)
    python.symlink_to(Path(sys.executable).resolve())
    for name in ("make", "bash", "sh", "grep", "sed", "find", "rm", "awk"):
        (programs / name).symlink_to(str(shutil.which(name)))

    def clean() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [programs / "make", "clean"],
            cwd=tmp_path,
            env={"PATH": str(programs)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    with subprocess.Popen([python, "-c", "input()"], stdin=subprocess.PIPE) as process:
        done = clean()
        assert done.returncode != 0
        assert f": {process.pid}) runs from .venv: make down first" in done.stderr
        assert python.exists()
        process.communicate(b"\n")
    assert clean().returncode == 0
    assert not python.parent.exists()


def test_fuzz_is_given_the_time_that_it_is_to_take() -> None:
    """Other tests have a limit of two minutes, which would end it in the middle of 40."""
    said = subprocess.run(
        ["make", "-n", "fuzz", "SECONDS=4000"], cwd=TOP, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert "FUZZ_SECONDS=4000 " in said
    assert "tests/fuzz --timeout $((4000 + 300))" in said


def parts() -> list[list[str]]:
    """The paths of each part of ``make test``."""
    said = subprocess.run(
        ["make", "-n", "test", "ARGS="], cwd=TOP, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    (line,) = re.findall(r"-m tests\.side_by_side (.*)", said)
    *found, options = parted(line.split())
    assert options == []
    return found


@pytest.fixture(scope="module")
def files() -> list[set[Path]]:
    """The files of tests of each part."""
    return [
        {each for path in part for each in ([TOP / path] if path.endswith(".py") else (TOP / path).rglob("test_*.py"))}
        for part in parts()
    ]


def test_each_test_is_in_one_part(files: list[set[Path]]) -> None:
    """Of those with other people's programs only crane's: the others run on demand."""
    everything = {
        path
        for path in (TOP / "tests").rglob("test_*.py")
        if path.parent.name != "peers" or path.name == "test_crane.py"
    }
    assert set().union(*files) == everything
    assert sum(map(len, files)) == len(everything)


def test_the_containers_of_nodes_are_in_one_part(files: list[set[Path]]) -> None:
    """Their cgroups have the names of the containers, which are the same in different files."""
    run = re.compile(r"""["'](run|tasks?)["']""")
    theirs = [
        path
        for part in files
        for path in part
        if path.parent.name in ("node", "crash") and run.search(path.read_text())
    ]
    assert len(theirs) > 20
    assert [part >= set(theirs) for part in files].count(True) == 1
