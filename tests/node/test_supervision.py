"""A node as its operator sees it: up, down, restart, status, and their effect on containers (none)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.processes import NAMES
from services.kit import cgroups
from tests.support import TOP, Node, eventually, freeze, processes_naming, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture
def sleeper(node: Node, box: str) -> Iterator[int]:
    """The pid of the init of a running container called sleeper."""
    node.ctr("run", "-d", box, "sleeper", "sleep", "1000")
    yield node.tasks()["sleeper"][0]
    node.wait_healthy()
    node.ctr("tasks", "rm", "-f", "sleeper", ok=None)
    node.ctr("containers", "rm", "sleeper", ok=None)


def test_up_again_says_that_the_node_is_up_and_changes_nothing(node: Node) -> None:
    """``splitd up`` is idempotent: same processes, exit code 0."""
    before = node.pids()
    assert "the node is up already" in node.splitd("up").stdout
    assert node.pids() == before


def test_every_process_names_the_state_directory_on_its_command_line(node: Node) -> None:
    """So ps shows whose it is."""
    named = set(processes_naming(node.state))
    assert set(node.pids().values()) <= named
    assert node.supervisord() in named


def test_the_processes_share_the_memory_of_what_all_have_loaded(node: Node) -> None:
    """Each is a copy of supervisord (docs/adr/0022), also one that was started again. Programs that are executed share
    pages of files, but no anonymous ones.
    """
    node.splitd("restart", "content")
    for name, pid in node.pids().items():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = {key: int(value.split()[0]) for key, value in re.findall(r"(\w+): +(\d+ kB)", rollup)}
        assert found["Shared_Dirty"] > 3 << 10, f"{name} shares {found['Shared_Dirty']} kB"


def test_status_tells_each_service_and_is_zero_only_if_all_are_healthy(node: Node) -> None:
    """It shows state, pid, uptime, memory, health and restarts of all; one that was stopped on purpose is enough
    for exit code 1.
    """
    status = node.status()
    assert status["healthy"]
    assert status["address"] == str(node.socket)
    assert [s["name"] for s in status["services"]] == list(NAMES)
    for service in status["services"]:
        assert service["state"] == "RUNNING"
        assert os.path.exists(f"/proc/{service['pid']}")
        assert 5 << 20 < service["memory"] < 200 << 20
        assert 0 <= service["uptime"] < 600
        assert service["restarts"] == 0
    assert {service["name"]: service["pid"] for service in status["services"]} == node.pids()
    assert status["supervisord"]["pid"] == node.supervisord()
    assert node.splitd("status").stdout.count(" ok") == len(NAMES)
    assert json.loads(node.splitd("version", "--json").stdout)["node"]["version"] == status["version"]
    node.splitd("down", "images")
    try:
        assert node.splitd("status", ok=None).returncode == 1
        assert [s["name"] for s in node.status()["services"] if not s["healthy"]] == ["images"]
    finally:
        node.up()


def test_up_starts_only_stopped_processes(node: Node) -> None:
    """After ``down images`` the others keep their pids."""
    before = node.pids()
    node.splitd("down", "images")
    assert "started images" in node.splitd("up").stdout
    assert {name for name, pid in node.pids().items() if before[name] != pid} == {"images"}


def test_services_stopped_on_purpose_stay_stopped(node: Node) -> None:
    """``restart --all`` does not start services that the operator has stopped."""
    node.splitd("down", "images")
    assert "images is stopped, and stays so\n" in node.splitd("restart", "--all").stdout
    assert node.splitd("up").stdout.startswith("started images: ")


def test_each_service_restarts_alone_and_no_container_notices(node: Node, sleeper: int) -> None:
    """One new pid, the other old ones, and the container's own."""
    for service in NAMES:
        before = node.pids()
        assert f"restarted {service}" in node.splitd("restart", service).stdout
        after = node.pids()
        assert {name for name in NAMES if before[name] != after[name]} == {service}
        assert node.status()["healthy"], service
        assert node.tasks()["sleeper"] == (sleeper, "RUNNING"), service


def test_a_killed_service_counts_as_a_restart(node: Node) -> None:
    """``restarts`` counts ends that were not requested, and only those."""

    def restarts() -> dict[str, int]:
        return {s["name"]: s["restarts"] for s in node.status()["services"]}

    before = restarts()
    node.kill("content")
    eventually(lambda: restarts() == {**before, "content": before["content"] + 1}, "content's restart is not counted")
    node.wait_healthy()


def test_down_leaves_containers_running_and_up_finds_them(node: Node, sleeper: int) -> None:
    """Only the shim is left of the node's processes; afterwards the task is there, exec works, and it can be ended."""
    node.down(containers=False)
    assert node.splitd("status", ok=None).returncode == 3
    os.kill(sleeper, 0)
    left = [Path(f"/proc/{pid}/cmdline").read_text() for pid in node.remains()]
    assert all("containerd-shim" in line for line in left), left
    node.up()
    assert node.tasks()["sleeper"] == (sleeper, "RUNNING")
    assert node.out("tasks", "exec", "--exec-id", "x", "sleeper", "echo", "inside") == "inside\n"


def test_a_container_stopped_on_purpose_starts_with_the_node_but_not_with_tasks(node: Node, box: str) -> None:
    """This is so for the policy always, as with docker and with containerd since 2.4.0; unless-stopped stays stopped.
    Another container, which is only restarted, shows that the monitor has run.
    """
    running, stopped = "containerd.io/restart.status=running", "containerd.io/restart.explicitly-stopped"
    policies = {"always": "always", "unless": "unless-stopped"}

    def label(name: str) -> str:
        return str(json.loads(node.out("containers", "info", name))["Labels"][stopped])

    def killed(name: str) -> None:
        node.ctr("tasks", "kill", "-s", "SIGKILL", name)
        eventually(lambda: node.tasks()[name][1] == "STOPPED", f"{name} is not STOPPED")

    for name, policy in policies.items():
        node.ctr(
            "run",
            "-d",
            "--label",
            running,
            "--label",
            f"containerd.io/restart.policy={policy}",
            "--label",
            f"{stopped}=true",
            box,
            name,
            "sleep",
            "1000",
        )
        killed(name)
    node.ctr("run", "-d", "--label", running, box, "witness", "sleep", "1000")
    witness = node.tasks()["witness"][0]
    node.splitd("restart", "tasks")
    node.ctr("tasks", "kill", "-s", "SIGKILL", "witness")
    eventually(lambda: node.tasks().get("witness", (witness, ""))[0] != witness, "the monitor does not look", 30)
    assert {name: (node.tasks()[name][1], label(name)) for name in policies} == dict.fromkeys(
        policies, ("STOPPED", "true")
    )
    node.down(containers=False)
    node.up()
    eventually(lambda: node.tasks().get("always", (0, ""))[1] == "RUNNING", "it does not start with the node", 30)
    assert (label("always"), label("unless"), node.tasks()["unless"][1]) == ("false", "true", "STOPPED")
    for name in (*policies, "witness"):
        node.ctr("containers", "label", name, "containerd.io/restart.status=")
        node.ctr("tasks", "rm", "-f", name)
        node.ctr("containers", "rm", name)


def test_a_killed_supervisord_takes_the_services_along_and_up_starts_anew(node: Node, sleeper: int) -> None:
    """No orphaned process works beside its successor, and no container is affected."""
    old = set(node.pids().values())
    os.kill(node.supervisord(), signal.SIGKILL)
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in old), "services outlive their supervisord")
    assert node.splitd("status", ok=None).returncode == 3
    node.up()
    assert node.tasks()["sleeper"] == (sleeper, "RUNNING")


def test_up_works_after_a_power_cut(node: Node) -> None:
    """All processes are killed at once: stale sockets, pid files and locks do not matter."""
    supervisor, services = node.supervisord(), node.pids().values()
    freeze(supervisor)  # else it starts them again, or its death ends them in good order
    for pid in (*services, supervisor):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in (*services, supervisor)))
    assert (node.state / "supervisor.sock").exists()
    assert (node.state / "containerd.sock").exists()
    node.up()
    assert node.status()["healthy"]


def test_logs_of_a_service_are_found_by_the_state_alone(node: Node) -> None:
    """``splitd logs`` needs no root, since the node's root is remembered; supervisord's log is there too."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "logs", "supervisord", "-n", "3", "--state", str(node.state)],
        cwd=TOP,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert len(done.stdout.splitlines()) == 3
    assert " INFO " in done.stdout


def test_down_with_containers_ends_every_namespaces_tasks(node: Node, box: str) -> None:
    """Tasks of two namespaces, one of them paused, are stopped and deleted; no process of the node is left, and the
    containers' records stay.
    """
    node.ctr("images", "pull", "--plain-http", box, namespace="other")
    node.ctr("run", "-d", box, "one", "sleep", "1000")
    node.ctr("run", "-d", box, "two", "sleep", "1000", namespace="other")
    node.ctr("tasks", "pause", "two", namespace="other")
    try:
        assert "stopped 2 containers" in node.splitd("down", "--containers", "--grace", "0").stdout
        eventually(lambda: not node.remains(), "something of the node is left")
    finally:
        node.up()
    assert node.tasks() == {}
    assert node.tasks("other") == {}
    node.ctr("containers", "rm", "one")
    node.ctr("containers", "rm", "two", namespace="other")


def test_services_have_the_configured_oom_score_and_cgroup_and_shims_are_not_in_it(box: str) -> None:
    """This holds after a restart of tasks too. The cgroup is there in every hierarchy, and containers run as usual. The
    score is the top-level key oom_score, as in containerd.
    """
    name = f"/splitd-test-{os.getpid()}"
    hierarchies = cgroups.hierarchies()
    if "" in hierarchies:  # with v2 it must be there
        (hierarchies[""][0] / name[1:]).mkdir()

    def groups(pid: int) -> dict[str, str]:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        return {
            controllers: path
            for _, controllers, path in (line.split(":", 2) for line in lines)
            if controllers in hierarchies
        }

    with short_directory() as directory:
        other = Node(directory, config=f"oom_score = 100\n[cgroup]\npath = '{name}'\n")
        try:
            other.up()
            other.ctr("images", "pull", "--plain-http", box)
            other.splitd("restart", "tasks")
            other.ctr("run", "-d", box, "sleeper", "sleep", "1000")
            assert other.tasks()["sleeper"][1] == "RUNNING"
            for pid in (other.supervisord(), *other.pids().values()):
                assert set(groups(pid).values()) == {name}, pid
                assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "100\n", pid
            (shim,) = (pid for pid in other.remains() if "containerd-shim" in Path(f"/proc/{pid}/cmdline").read_text())
            assert groups(shim) == groups(os.getpid())
        finally:
            other.clear()
            for top, _ in hierarchies.values():
                eventually(lambda directory=top / name[1:]: _removed(directory), (f"{top}{name} is not empty"))  # type: ignore[misc]


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def test_two_nodes_run_side_by_side_with_containers_of_the_same_name(node: Node, box: str) -> None:
    """A container of one node cannot be created twice there, and the container of the same name on the other node is
    not affected.
    """
    with short_directory() as directory:
        other = Node(directory)
        try:
            other.up()
            other.ctr("images", "pull", "--plain-http", box)
            for each in (node, other):
                each.ctr("run", "-d", box, "twin", "sleep", "1000")
            first, second = node.tasks()["twin"], other.tasks()["twin"]
            assert first[0] != second[0]
            assert first[1] == second[1] == "RUNNING"
            node.ctr("run", "-d", box, "twin", "sleep", "1000", ok=False)
            node.ctr("tasks", "rm", "-f", "twin")  # SIGKILL to all of it, and the two share a cgroup
            node.ctr("containers", "rm", "twin")
            node.ctr("run", box, "twin", "/no/such/program", ok=False)
            node.ctr("containers", "rm", "twin", ok=None)
            assert other.tasks()["twin"] == second
            assert other.out("tasks", "exec", "--exec-id", "x", "twin", "echo", "still here") == "still here\n"
            other.down()
            assert node.status()["healthy"]
        finally:
            other.clear()
        assert not other.remains()


def test_two_ups_at_once_make_one_node(place: Path) -> None:
    """Both succeed, one supervisord runs."""
    node = Node(place)
    try:
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda _: node.splitd("up"), range(2)))
        assert sorted("already" in d.stdout for d in done) == [False, True]
        assert sum(b"supervisord.conf" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in node.remains()) == 1
    finally:
        node.clear()


def test_in_the_foreground_the_node_ends_with_its_supervisord(place: Path) -> None:
    """This is how systemd runs it: SIGTERM to the one process stops the services in order, with exit code 0, and
    nothing is left.
    """
    node = Node(place)
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy", "up", "--foreground", "--root", str(node.root), "--state", str(node.state)],
        cwd=TOP,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: node.status()["healthy"], "not healthy", 30)
        assert node.supervisord() == process.pid
        assert "already" in node.splitd("up").stdout
        process.terminate()
        assert process.wait(60) == 0
        assert not node.remains()
    finally:
        process.kill()
        process.wait()
        node.clear()


def test_a_service_that_cannot_start_is_named_with_its_reason(place: Path) -> None:
    """A file is where the content service needs its directory: ``up`` fails with the service's own words, the others
    run, and down works.
    """
    node = Node(place)
    node.root.mkdir()
    (node.root / "content").write_text("in the way")
    try:

        def told() -> str:
            done = node.splitd("up", "--timeout", "3", ok=False)
            assert "content is not healthy" in done.stderr
            # it has not come to that yet, where a machine is slow
            assert "content cannot run" in done.stderr, done.stderr
            return done.stderr

        assert "Traceback" not in eventually(told, seconds=60)
        eventually(
            lambda: (
                [s["name"] for s in node.status()["services"] if s["state"] == "RUNNING" and not s["healthy"]]
                in (["content"], [])
            ),
            "others are broken too",
        )
        eventually(
            lambda: re.search(
                r"^content ended by itself (once|\d+ times); its log: .* content cannot run",
                node.splitd("status", ok=None).stdout,
                re.MULTILINE,
            ),
            "status does not say why",
        )
        (node.root / "content").unlink()
        node.wait_healthy()
    finally:
        node.clear()


def test_a_service_that_hangs_is_named_by_status_and_only_it(node: Node) -> None:
    """A service under SIGSTOP is running for supervisord, but not healthy for the operator; after SIGCONT all is
    well.
    """
    pid = node.pids()["images"]
    freeze(pid)
    try:
        eventually(
            lambda: [s["name"] for s in node.status()["services"] if not s["healthy"]] == ["images"],
            "the hanging service is not named",
        )
        assert node.splitd("status", ok=None).returncode == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    node.wait_healthy()


def test_a_node_whose_lock_or_socket_was_removed_is_found_and_stopped(place: Path) -> None:
    """A cleaner of STATE may remove them: ``up`` starts no second node beside it, and ``down`` does not say that there
    is nothing to stop.
    """
    node = Node(place)
    try:
        node.up()
        pid = node.supervisord()
        (node.state / "supervisord.lock").unlink()
        assert "up already" in node.splitd("up").stdout
        assert node.supervisord() == pid
        assert f"the node at {node.state} is down" in node.splitd("down").stdout
        assert not node.remains()
        assert "nothing to stop" in node.splitd("down").stdout
        node.up()
        (node.state / "supervisor.sock").unlink()
        assert node.status()["healthy"], "status does not wait until it is there again"
        for name in ("supervisord.lock", "supervisor.sock"):
            (node.state / name).unlink()
        assert f"the node at {node.state} is down" in node.splitd("down").stdout
        assert not node.remains()
    finally:
        node.clear()
