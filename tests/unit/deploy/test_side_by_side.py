"""``make test`` runs its parts side by side, and says as much as one pytest would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.side_by_side import CACHE, FAILED, code_of, parted
from tests.support import TOP, eventually

COMMAND = [sys.executable, "-m", "tests.side_by_side", "one.py", "--", "two.py", "--"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TOP), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for the two parts, ``one.py`` and ``two.py``."""
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    return tmp_path


def run(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)


def test_what_fails_in_any_part_is_shown_and_remembered(place: Path) -> None:
    """The parts' outputs stand one below the other, the last lines name what failed, and pytest's cache has it. The
    parts do run at the same time: each waits for the other's file.
    """
    meet = """
import pathlib, time
def test_meets():
    pathlib.Path("{mine}").touch()
    end = time.monotonic() + 30
    while not pathlib.Path("{other}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
def test_fails():
    assert "{mine}" == "first"
"""
    (place / "one.py").write_text(meet.format(mine="first", other="second"))
    (place / "two.py").write_text(meet.format(mine="second", other="first"))
    done = run(place)
    assert done.returncode == 1
    assert done.stdout.index("one.py ..") < done.stdout.index("two.py .F") < done.stdout.index("AssertionError")
    assert done.stdout.endswith("passed: one.py\nfailed: two.py\nFAILED two.py::test_fails\n")
    assert json.loads((place / CACHE / FAILED).read_text()) == {"two.py::test_fails": True}


def test_a_part_that_ends_early_leaves_no_list_of_what_failed(place: Path) -> None:
    """CI runs the tests of such a list once more: if they passed, it would not miss those that never ran."""
    (place / "one.py").write_text("def test_fails():\n    assert False\n")
    (place / "two.py").write_text("import os\ndef test_ends():\n    os._exit(7)\n")
    (place / CACHE / FAILED).parent.mkdir(parents=True)
    (place / CACHE / FAILED).write_text("{}")
    done = run(place)
    assert done.returncode == 7
    assert "failed: one.py\nended with 7: two.py\n" in done.stdout
    assert not (place / CACHE / FAILED).exists()


def test_what_was_written_is_shown_when_it_is_ended(place: Path) -> None:
    """Whoever ends a run that takes too long wants to see where it was. No part is left running."""
    waits = """
import os, pathlib, time
def test_comes_first(): pass
def test_waits():
    pathlib.Path(f"{os.getpid()}.pid").touch()
    time.sleep(60)
"""
    for name in ("one.py", "two.py"):
        (place / name).write_text(waits)
    with subprocess.Popen(COMMAND, cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        pids = eventually(lambda: found if len(found := list(place.glob("*.pid"))) == 2 else None, "not both wait", 60)
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "one.py ." in said
    assert "two.py ." in said
    assert not any(Path(f"/proc/{path.stem}").exists() for path in pids)


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([0, 1], 1), ([1, 2], 2), ([5, 0], 0), ([5, 1], 1), ([5, 5], 5), ([0, -11], 139)]
)
def test_the_exit_code_is_the_worst(codes: list[int], code: int) -> None:
    """A part without a chosen test does not count, a signal is told as a shell does."""
    assert code_of(codes) == code


def test_parts_and_options_are_apart() -> None:
    assert parted(["a", "b", "--", "c", "--", "-k", "d"]) == [["a", "b"], ["c"], ["-k", "d"]]
    assert parted(["a", "--"]) == [["a"], []]
