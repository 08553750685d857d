"""A node below which another release is installed: the reports about it, and the switch to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.processes import NAMES
from services.kit import version
from tests.support import TOP, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(300)]


class Installed:
    """A copy of the files of a node, and the node that runs from it."""

    def __init__(self, directory: Path) -> None:
        self.top = directory / "top"
        for name in ("api", "client", "deploy", "gateway", "services"):
            shutil.copytree(TOP / name, self.top / name)  # with what Python compiled
        self.where = ["--root", str(directory / "r"), "--state", str(directory / "s")]

    def splitd(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "deploy", *words, *self.where],
            env={**os.environ, "PYTHONPATH": str(self.top)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def change(self, file: str, line: str = "# of another release") -> None:
        """Install another release of it."""
        with (self.top / file).open("a") as source:
            source.write(f"{line}\n")

    def runs(self) -> tuple[str, dict[str, str]]:
        """Return the installed revision, and the revision that each service runs."""
        status = json.loads(self.splitd("status", "--json"))
        return status["revision"], {each["name"]: each["revision"] for each in status["services"]}

    def versions(self) -> dict[str, tuple[str, bool]]:
        """The version that each service tells, and whether it has memory in common with supervisord."""
        status = json.loads(self.splitd("status", "--json"))
        return {each["name"]: (each["version"], shares(each["pid"])) for each in status["services"]}


def shares(pid: int) -> bool:
    """Whether the process has pages of its parent, which have no file."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return "Shared_Dirty:          0 kB" not in rollup


@pytest.fixture
def installed() -> Iterator[Installed]:
    with short_directory() as directory:
        node = Installed(directory)
        node.splitd("up")
        yield node
        node.splitd("down")


def test_a_node_reports_its_revision_and_switches_to_the_installed_one(installed: Installed) -> None:
    """First one service, then all, then the parts that only a start of the node changes: each time ``up`` and
    ``status`` name what is left, with both revisions and the command, and nothing when the switch is complete.
    """
    old, runs = installed.runs()
    assert runs == dict.fromkeys(NAMES, old)
    assert "installed is" not in installed.splitd("up")
    installed.change("services/kit/errors.py")
    new, runs = installed.runs()
    assert new != old
    assert runs == dict.fromkeys(NAMES, old)
    for said in (installed.splitd("up"), installed.splitd("status")):
        (line,) = (line for line in said.splitlines() if "installed is" in line)
        assert line.startswith(f"{', '.join(NAMES)} run ")
        assert old in line
        assert new in line
        assert "restart --all" in line
        assert "supervisord runs" not in said
    installed.splitd("restart", "content")
    assert installed.runs()[1] == {**dict.fromkeys(NAMES, old), "content": new}
    others = ", ".join(name for name in NAMES if name != "content")
    assert f"\n{others} run " in installed.splitd("status")
    assert [line.split(":")[0] for line in installed.splitd("restart", "--all").splitlines()] == [
        f"restarted {name}" for name in NAMES
    ]
    assert installed.runs()[1] == dict.fromkeys(NAMES, new)
    assert "installed is" not in installed.splitd("status")

    installed.change("deploy/inside/logs.py")
    assert "supervisord runs what was installed" in installed.splitd("restart", "--all")
    installed.splitd("down")
    assert "supervisord" not in installed.splitd("up")


def test_a_service_that_is_started_again_runs_the_installed_code_alone(installed: Installed) -> None:
    """supervisord, whose copies the services are, has loaded the earlier release. A service that is restarted, or dies,
    runs the new one and shares nothing. After the next start of the node the services share what is new.
    """
    old, new = version.VERSION, f"{version.VERSION}.new"
    installed.splitd("restart", "content")
    assert installed.versions() == dict.fromkeys(NAMES, (old, True))

    installed.change("services/kit/version.py", 'VERSION += ".new"')
    status = json.loads(installed.splitd("status", "--json"))
    installed.splitd("restart", "content")
    os.kill(next(each["pid"] for each in status["services"] if each["name"] == "images"), signal.SIGKILL)
    others = dict.fromkeys(NAMES, (old, True))
    eventually(
        lambda: installed.versions() == {**others, "content": (new, False), "images": (new, False)},
        "images does not run the new release",
        60,
    )

    installed.splitd("down")
    installed.splitd("up")
    assert installed.versions() == dict.fromkeys(NAMES, (new, True))
