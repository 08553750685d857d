"""``make clean`` keeps the environment from which a node runs, on any machine; ``make fuzz`` runs for the requested
time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

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
