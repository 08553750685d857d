"""The description in CONTRIBUTING.md of the suite on a third-party snapshotter is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.snapshots.native import NativeSnapshotter
from tests.suites.snapshots import SnapshotterSuite
from tests.support import TOP, ServiceProcess

pytestmark = [pytest.mark.root, pytest.mark.once]
DOCUMENT = (TOP / "CONTRIBUTING.md").read_text()


def test_the_suite_runs_on_a_snapshotter_of_ones_own(place: Path) -> None:
    """The file and the command that are shown run on our native snapshotter as on a third party's; of the tests, those
    of one implementation and of the words.
    """
    (shown,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    (command,) = re.findall(r"^\.venv/bin/python (-m pytest .*)$", DOCUMENT, re.MULTILINE)
    socket, file = place / "s" / f"snapshots-{NativeSnapshotter.NAME}.sock", place / "test_mine.py"
    file.write_text(shown.replace("/run/mine.sock", str(socket)))
    words = [str(file) if word.endswith("test_mine.py") else word for word in command.split()]
    with ServiceProcess("services.snapshots", place / "r", place / "s", sockets=(socket.name,)):
        done = subprocess.run(
            [
                sys.executable,
                *words,
                "-k",
                "test_a_life or stat_of_what_is_not_there or rebase",
                "-p",
                "no:cacheprovider",
            ],
            cwd=TOP,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stdout
    assert "3 passed, 2 skipped" in done.stdout, done.stdout


def test_each_attribute_that_is_named_is_the_suites() -> None:
    """Each has the default that is shown."""
    for name, default in re.findall(r"^\| `(\w+)` \| `(\w+)` \|", DOCUMENT, re.MULTILINE):
        assert str(getattr(SnapshotterSuite, name)) == default
