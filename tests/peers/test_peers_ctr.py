"""The real ctr of several versions of containerd: each command has the same output on a node as on containerd."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator

import pytest

from deploy.samples import Registry
from tests.peer import program2
from tests.peers.sides import Sides, sides

CTRS = list(dict.fromkeys(filter(None, (shutil.which("ctr"), program2("ctr")))))
SIZED = {r"\d+(\.\d+)? ?[KMG]?i?B": "SIZE"}
OUR_LABEL = r',?\s*"containerd.io/snapshot/diff-id": "[^"]*"'
"""The label of a snapshot that the node has pulled itself: the diff id of its layer."""
TOOK = {
    r"elapsed: .*": "TOOK",
    r"(?m)^.*(unpacking|saved|Completed pull|application/vnd).*\n?": "",
    r".*\x1b\[.*\n?": "",
}

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
        for side in (found.ours, found.theirs):
            for task in found.run(side, "tasks", "ls", "-q").stdout.split():
                found.run(side, "tasks", "rm", "-f", task)


@pytest.fixture
def box(both: Sides, registry: Registry) -> str:
    """A busybox image that both have pulled, and no other; unneeded things are collected at once, not at the scheduled
    time.
    """
    reference = f"{registry.host}/box:1"
    for side in (both.ours, both.theirs):
        if images := both.run(side, "images", "ls", "-q").stdout.split():
            both.run(side, "images", "rm", "--sync", *images)
        assert both.run(side, "images", "pull", "--plain-http", reference).returncode == 0
    return reference


def test_images(both: Sides, box: str) -> None:
    """ls, check, label, tag, mount, export, import, rm."""
    assert box in both("images", "ls", varies=SIZED)
    assert box in both("images", "check", varies=SIZED)
    both("images", "label", box, "a=b")
    both("images", "tag", box, "other:2")
    both("images", "tag", box, "other:2", ok=None)
    assert both("images", "ls", "-q", "name==other:2") == "other:2\n"
    for side in (both.ours, both.theirs):
        (side.directory / "mounted").mkdir()
    both("images", "mount", box, "{dir}/mounted", varies={r"sha256:\w+": "ROOT"})
    ours, theirs = both.files("mounted")
    assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
    both("images", "unmount", "--rm", "{dir}/mounted")
    both("images", "export", "{dir}/box.tar", box, varies=TOOK)
    archives = []
    for path in both.files("box.tar"):
        with tarfile.open(path) as tar:
            archives.append({m.name: m.size for m in tar.getmembers()})
    assert archives[0] == archives[1]
    both("images", "rm", "--sync", "other:2", box)
    assert both("content", "ls", "-q") == ""
    both("images", "import", "{dir}/box.tar", varies=TOOK)
    both("images", "ls", varies=SIZED)
    both("images", "rm", "nothing:1", ok=None)


def test_content(both: Sides, box: str) -> None:
    """ls, get, label, ingest, active, fetch-object, rm: the same bytes and labels."""
    both("content", "ls", varies=SIZED)
    [first, *_] = both("content", "ls", "-q").split()
    both("content", "get", first)
    both("content", "label", first, "x=y")
    both("content", "ls", 'labels."x"==y', varies=SIZED)
    assert both("content", "ingest", "ref", stdin="bytes\n") == ""
    both("content", "active")
    both("content", "rm", first)
    both("content", "get", first, ok=False)
    both("content", "rm", first, ok=None)
    both("content", "get", "sha256:short", ok=False)


def test_snapshots(both: Sides, box: str) -> None:
    """ls, prepare, view, info, mounts, label, tree, commit, diff, rm."""
    [image] = {
        line.split()[0]
        for line in both("snapshots", "ls", varies=SIZED).splitlines()[1:]
        if line.split()[-1] == "Committed"
    }
    both("snapshots", "info", image, varies={r'"(Created|Updated)": "[^"]*"': "TIME", OUR_LABEL: ""})
    mounted = {r"/\S+?/snapshots/\d+": "SNAPSHOT", r"(upper|lower|work)dir=[^, ]*": "DIR", "index=off,|,index=off": ""}
    both("snapshots", "prepare", "active", image)
    both("snapshots", "prepare", "active", image, ok=False)
    both("snapshots", "mounts", "{dir}", "active", varies=mounted)
    both("snapshots", "label", "active", "a=b")
    both("snapshots", "tree")
    both("snapshots", "commit", "done", "active")
    both("snapshots", "view", "seen", "done")
    both("snapshots", "rm", "done", ok=False, varies=mounted)
    both("snapshots", "rm", "seen")
    both("snapshots", "rm", "done")
    both("snapshots", "rm", "nothing", ok=False)
    both("snapshots", "prepare", "orphan", "nothing", ok=False)


def test_containers_and_tasks(both: Sides, box: str) -> None:
    """run, exec, ps, kill, pause, resume, metrics, rm, and what is refused."""
    assert both("run", "--rm", box, "short", "echo", "in") == "in\n"
    both("run", "--rm", box, "short", "sh", "-c", "exit 3", ok=False)
    both("run", "--rm", box, "short", "/nothing/there", ok=False)
    both("run", "-d", box, "long", "sleep", "1000")
    both("run", "-d", box, "long", "sleep", "1000", ok=False)
    assert both("tasks", "exec", "--exec-id", "e", "long", "echo", "in") == "in\n"
    both("tasks", "exec", "--exec-id", "e", "long", "sh", "-c", "exit 5", ok=False)
    pids = {r"\b\d{2,}\b": "PID", " +": " "}
    both("tasks", "ls", varies=pids)
    both("tasks", "ps", "long", varies=pids)
    both("tasks", "pause", "long")
    both("tasks", "ls", varies=pids)
    both("tasks", "resume", "long")
    both("tasks", "rm", "long", ok=False)
    both("containers", "rm", "long", ok=False)
    both("containers", "ls")
    both("containers", "label", "long", "a=b")
    both("tasks", "kill", "-s", "SIGKILL", "long")
    both.settled("tasks", "ls", until="STOPPED")
    both("tasks", "rm", "long", ok=None)  # some answer its exit status
    both("containers", "rm", "long")
    both("tasks", "kill", "nobody", ok=False)


def test_namespaces_and_leases(both: Sides) -> None:
    """create, ls, label, rm."""
    both("namespaces", "create", "ns1", "a=b")
    both("namespaces", "create", "ns1", ok=False)
    both("namespaces", "label", "ns1", "c=d")
    both("namespaces", "ls", "-q")
    both("namespaces", "rm", "ns1")
    both("namespaces", "rm", "ns1", ok=None)
    both("leases", "create", "--id", "l1", "x=y")
    both("leases", "create", "--id", "l1", ok=False)
    both("leases", "ls")
    both("leases", "rm", "l1")
    both("leases", "ls", "-q")
