"""Real registries: ctr pulls and pushes through a node with the same results as through containerd."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.samples import Image
from tests.peer import program2
from tests.peers.registries import crane, crane_registry, distribution_registry, oci_layout
from tests.peers.sides import Sides, sides
from tests.pulls import runnable

CTRS = list(dict.fromkeys(filter(None, (shutil.which("ctr"), program2("ctr")))))
REGISTRIES = {"crane": crane_registry, "distribution": distribution_registry}
SIZED = {r"\d+(\.\d+)? ?[KMG]?i?B": "SIZE"}
LAST = {r"(?s).*\n(?=.+\n?\Z)": "", r"elapsed: .*": "TOOK", r"\bby-\w+": "NAME", "Pulling from": "Completed pull from"}
"""Only the last line of the progress is compared, without times, and whether or not its display reached the last event;
the name that a side pushes to is replaced.
"""

pytestmark = [
    pytest.mark.node,
    pytest.mark.root,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not CTRS, reason="no ctr is installed"),
]


@pytest.fixture(scope="module", params=CTRS)
def both(request: pytest.FixtureRequest) -> Iterator[Sides]:
    """Runs ctr on both."""
    with sides(request.param, "-a", "{socket}", "-n", "peers-{name}") as found:
        yield found


@pytest.fixture(scope="module", params=REGISTRIES)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with REGISTRIES[request.param](tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def box() -> Image:
    return runnable(kib=100)


@pytest.fixture
def pushed(host: str, box: Image, tmp_path: Path) -> str:
    """An image that crane pushed."""
    reference = f"{host}/team/box:1"
    crane("push", str(oci_layout(box, tmp_path / "box")), reference)
    return reference


def test_pull_and_push(both: Sides, host: str, box: Image, pushed: str) -> None:
    """By tag and by digest: records, content and labels are the same, the image runs, and crane validates it after the
    push.
    """
    both("images", "pull", "--plain-http", pushed, varies=LAST)
    both("images", "pull", "--plain-http", f"{host}/team/box@{box.digest}", varies=LAST)
    assert pushed in both("images", "ls", varies=SIZED)
    both("images", "check", varies=SIZED)
    both("content", "ls", varies=SIZED)
    assert both("run", "--rm", pushed, "once", "echo", "in") == "in\n"
    for _ in range(2):  # the second time all is there
        both("images", "push", "--plain-http", f"{host}/team/by-{{name}}:1", pushed, varies=LAST)
    for side in (both.ours, both.theirs):
        assert crane("digest", f"{host}/team/by-{side.name}:1") == box.digest
        crane("validate", "--remote", f"{host}/team/by-{side.name}:1")


def test_what_is_not_there(both: Sides, host: str, box: Image, pushed: str) -> None:
    """The tag, the digest, the repository or the registry does not exist: no side stores anything."""
    for side in (both.ours, both.theirs):
        if images := both.run(side, "images", "ls", "-q").stdout.split():
            both.run(side, "images", "rm", "--sync", *images)
    for reference in (
        f"{host}/team/box:2",
        f"{host}/team/box@sha256:{'0' * 64}",
        f"{host}/team/absent:1",
        "127.0.0.1:1/box:1",
    ):
        for side in (both.ours, both.theirs):
            done = both.run(side, "images", "pull", "--plain-http", reference)
            assert done.returncode == 1, f"{side.name}: {done}"
            assert reference.partition("/")[0] in done.stderr, f"{side.name}: {done.stderr}"
    assert both("images", "ls", "-q") == ""
    assert both("content", "ls", "-q") == ""
