"""The cgroup of a node's processes, on this machine's hierarchies: entering it, and leaving it for shims."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit import cgroups, config, errors
from tests.support import TOP, eventually

SHOWN = """
import os, subprocess
from services.kit import cgroups
show = ["cat", "/proc/self/cgroup"]
print(subprocess.run(show, capture_output=True, text=True).stdout, end="===")
print(subprocess.run([*cgroups.leaving(os.environ), *show], capture_output=True, text=True).stdout, end="===")
print(subprocess.run([*cgroups.leaving(os.environ), "/bin/sh", "-c", 'echo "$0 $1 [$SPLITD_SHIM_CGROUPS]"', "a b", "c"], capture_output=True, text=True).stdout, end="===")
os.environ[cgroups.BACK] = "/none/cgroup.procs"
print(subprocess.run([*cgroups.leaving(os.environ), *show], capture_output=True, text=True).stdout, end="")
"""


def groups(text: str) -> dict[str, str]:
    """Cgroups by the controllers of their hierarchies."""
    return {controllers: path for _, controllers, path in (line.split(":", 2) for line in text.splitlines())}


@pytest.fixture
def path() -> Iterator[str]:
    """A path of a new cgroup, which is removed afterwards."""
    hierarchies = cgroups.hierarchies()
    name = f"/splitd-test-{os.getpid()}"
    if "" in hierarchies:
        (hierarchies[""][0] / name[1:]).mkdir()
    yield f"{name}/inner" if "" not in hierarchies else name
    for top, _ in hierarchies.values():
        for made in (f"{name[1:]}/inner", name[1:]):

            def removed(directory: Path = top / made) -> bool:
                with contextlib.suppress(FileNotFoundError):
                    try:
                        directory.rmdir()
                    except OSError:
                        return False
                return True

            eventually(removed, f"{top / made} is not empty", 10)


@pytest.mark.root
def test_a_command_runs_in_the_cgroup_and_what_it_starts_may_leave_it(path: str) -> None:
    """This holds in every mounted hierarchy, including cpusets. A process that leaves is in the cgroup where the
    command was started, with its arguments and no trace of the wrapper; if that cgroup is gone, it stays.
    """
    before = groups(Path("/proc/self/cgroup").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "services.kit.cgroups", path, sys.executable, "-c", SHOWN],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    inside, outside, arguments, astray = done.stdout.split("===")
    moved = {controllers: path for controllers in cgroups.hierarchies() if controllers in before}
    assert moved
    assert groups(inside) == {**before, **moved}
    assert groups(outside) == before
    assert arguments == "a b c []\n"
    assert groups(astray) == groups(inside)


def test_where_there_is_no_cgroup_the_command_is_not_run(tmp_path: Path) -> None:
    """With v2 the cgroup is not made; the error names it."""
    mounts, own = tmp_path / "mountinfo", tmp_path / "cgroup"
    mounts.write_text("31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n")
    own.write_text("0::/system.slice\n")
    with pytest.raises(
        errors.FailedPrecondition,
        match=r"^\[cgroup\] path: /sys/fs/cgroup/splitd-none does not exist, and with cgroup v2 it must: ",
    ):
        cgroups.join("/splitd-none", mounts=mounts, own=own)


@pytest.mark.parametrize("path", ["splitd", "/a/../b", "/a\nb"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(ValueError, match="is not an absolute path"):
        config.Cgroup(path=path)


def test_without_one_nothing_is_put_before_a_shim() -> None:
    assert cgroups.leaving({}) == []
