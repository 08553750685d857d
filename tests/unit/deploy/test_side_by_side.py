"""``make test`` runs its parts side by side, and says as much as one pytest would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.side_by_side import CACHE, FAILED, code_of, parted
from tests.support import TOP, eventually

COMMAND = [sys.executable, "-m", "tests.side_by_side"]
TWO = ("one.py", "--", "two.py", "--")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TOP), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for the two parts, ``one.py`` and ``two.py``."""
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    return tmp_path


def run(place: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *(words or TWO)],
        cwd=place,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


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
    last = re.sub(r"after \d+ s", "after N s", done.stdout)
    assert last.endswith("passed after N s: one.py\nfailed after N s: two.py\nFAILED two.py::test_fails\n")
    assert json.loads((place / CACHE / FAILED).read_text()) == {"two.py::test_fails": True}


def test_a_part_that_ends_early_leaves_no_list_of_what_failed(place: Path) -> None:
    """CI runs the tests of such a list once more: if they passed, it would not miss those that never ran."""
    (place / "one.py").write_text("def test_fails():\n    assert False\n")
    (place / "two.py").write_text("import os\ndef test_ends():\n    os._exit(7)\n")
    (place / CACHE / FAILED).parent.mkdir(parents=True)
    (place / CACHE / FAILED).write_text("{}")
    done = run(place)
    assert done.returncode == 7
    assert "failed after N s: one.py\nended with 7 after N s: two.py\n" in re.sub(r"\d+ s:", "N s:", done.stdout)
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
    with subprocess.Popen([*COMMAND, *TWO], cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        pids = eventually(lambda: found if len(found := list(place.glob("*.pid"))) == 2 else None, "not both wait", 60)
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "one.py ." in said
    assert "two.py ." in said
    assert not any(Path(f"/proc/{path.stem}").exists() for path in pids)


def test_four_parts_run_at_once_and_then_the_next(place: Path) -> None:
    """The fifth begins when one of the first four has ended, while the others run."""
    waits = """
import os, pathlib, time
def until(*names):
    end = time.monotonic() + 60
    while not all(pathlib.Path(name).exists() for name in names):
        assert time.monotonic() < end
        time.sleep(0.01)
"""
    for name in ("one", "two", "three"):
        (place / f"{name}.py").write_text(f"{waits}def test_waits(): pathlib.Path('{name}').touch(); until('fifth')\n")
    (place / "four.py").write_text(
        f"{waits}def test_ends():\n    until('one', 'two', 'three')\n    parent = os.getppid()\n"
        "    assert len(pathlib.Path(f'/proc/{parent}/task/{parent}/children').read_text().split()) == 4\n"
    )
    (place / "five.py").write_text("import pathlib\ndef test_comes(): pathlib.Path('fifth').touch()\n")
    done = run(place, "one.py", "--", "two.py", "--", "three.py", "--", "four.py", "--", "five.py", "--")
    assert done.returncode == 0, done.stdout
    ended = [line.partition(" after ") for line in done.stdout.splitlines() if line.startswith("passed after ")]
    assert [line[2].partition(": ")[2] for line in ended] == ["one.py", "two.py", "three.py", "four.py", "five.py"]


def test_only_what_failed_runs_again(place: Path) -> None:
    """``--lf`` chooses nothing of a part in which nothing failed, and of the others what failed there."""
    test = "import os, pathlib\ndef test_{0}():\n    pathlib.Path('ran').open('a').write('{0} ')\n    assert {1}\n"
    (place / "one.py").write_text(test.format("a", "'MENDED' in os.environ") + test.format("b", "True"))
    (place / "two.py").write_text(test.format("c", "True"))
    (place / "three.py").write_text(test.format("d", "False"))
    parts = ("one.py", "--", "two.py", "--", "three.py", "--")

    def again(**environment: str) -> tuple[int, list[str], set[str]]:
        (place / "ran").unlink(missing_ok=True)
        done = run(place, *parts, *(() if not environment else ("--lf",)), **environment)
        failed = json.loads((place / CACHE / FAILED).read_text())
        return done.returncode, sorted((place / "ran").read_text().split()), set(failed)

    assert again() == (1, ["a", "b", "c", "d"], {"one.py::test_a", "three.py::test_d"})
    assert again(AGAIN="1") == (1, ["a", "d"], {"one.py::test_a", "three.py::test_d"})
    assert again(MENDED="1") == (1, ["a", "d"], {"three.py::test_d"})
    assert again(MENDED="1") == (1, ["d"], {"three.py::test_d"})


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([0, 1], 1), ([1, 2], 2), ([5, 0], 0), ([5, 1], 1), ([5, 5], 5), ([0, -11], 139)]
)
def test_the_exit_code_is_the_worst(codes: list[int], code: int) -> None:
    """A part without a chosen test does not count, a signal is told as a shell does."""
    assert code_of(codes) == code


def test_parts_and_options_are_apart() -> None:
    assert parted(["a", "b", "--", "c", "--", "-k", "d"]) == [["a", "b"], ["c"], ["-k", "d"]]
    assert parted(["a", "--"]) == [["a"], []]
