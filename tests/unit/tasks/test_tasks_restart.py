"""The restart monitor's decisions and actions, on a fake of tasks."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.kit import errors, tracing
from services.oci.mounts import Mount
from services.oci.opaque import Opaque
from services.tasks.nodestart import NodeStart
from services.tasks.restart import COUNT, LOG_PATH, LOG_URI, POLICY, STATUS, STOPPED, Policy, RestartMonitor, decide
from services.tasks.store import IO, Container, CreateOptions, Exit, Process, Status
from tests.spans import Recorder
from tests.support import eventually_async
from tests.unit.tasks.tasks_fakes import FakeNode


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Policy("always")),
        ("always", Policy("always")),
        ("no", Policy("no")),
        ("unless-stopped", Policy("unless-stopped")),
        ("on-failure", Policy("on-failure")),
        ("on-failure:3", Policy("on-failure", 3)),
    ],
)
def test_policies_are_read(text: str, policy: Policy) -> None:
    """Each policy is tried in each of its spellings."""
    assert Policy.parse(text) == policy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("always:3", 'restart policy "always" not support max retry count'),
        ("sometimes", 'restart policy "sometimes" not supported'),
        ("on-failure:x", "invalid max retry count: x"),
    ],
)
def test_bad_policies_are_named(text: str, words: str) -> None:
    """The error has containerd's words."""
    with pytest.raises(errors.InvalidArgument, match=f"^{words}"):
        Policy.parse(text)


@pytest.mark.parametrize(
    ("labels", "status", "code", "todo"),
    [
        ({STATUS: "running"}, Status.RUNNING, 0, ""),
        ({STATUS: "running"}, Status.STOPPED, 0, "start"),
        ({STATUS: "running"}, Status.CREATED, 0, "start"),
        ({STATUS: "running"}, None, 0, "start"),
        ({STATUS: "running"}, Status.PAUSED, 0, ""),
        ({STATUS: "running"}, Status.PAUSING, 0, ""),
        ({STATUS: "running", POLICY: "no"}, Status.STOPPED, 1, ""),
        ({STATUS: "running", POLICY: "on-failure"}, Status.STOPPED, 0, ""),
        ({STATUS: "running", POLICY: "on-failure"}, Status.STOPPED, 1, "start"),
        ({STATUS: "running", POLICY: "on-failure:2", COUNT: "1"}, Status.STOPPED, 1, "start"),
        ({STATUS: "running", POLICY: "on-failure:2", COUNT: "2"}, Status.STOPPED, 1, ""),
        ({STATUS: "running", POLICY: "unless-stopped"}, Status.STOPPED, 0, "start"),
        ({STATUS: "running", POLICY: "unless-stopped", STOPPED: "true"}, Status.STOPPED, 0, ""),
        ({STATUS: "running", POLICY: "unless-stopped", STOPPED: "false"}, Status.STOPPED, 0, "start"),
        ({STATUS: "running", STOPPED: "1"}, Status.STOPPED, 0, ""),
        ({STATUS: "running", POLICY: "always", STOPPED: "true"}, None, 0, ""),
        ({STATUS: "running", POLICY: "on-failure", STOPPED: "true"}, Status.STOPPED, 1, ""),
        ({STATUS: "running", POLICY: "sometimes", STOPPED: "true"}, Status.STOPPED, 1, ""),
        ({STATUS: "stopped", STOPPED: "true"}, Status.RUNNING, 0, "stop"),
        ({STATUS: "stopped"}, Status.RUNNING, 0, "stop"),
        ({STATUS: "stopped"}, Status.STOPPED, 0, ""),
        ({STATUS: "stopped"}, None, 0, ""),
        ({STATUS: "odd"}, Status.RUNNING, 0, ""),
        ({}, Status.STOPPED, 0, ""),
    ],
)
def test_decisions(labels: dict[str, str], status: Status | None, code: int, todo: str) -> None:
    """The action that the labels require for a task in each state, as containerd's monitor decides it."""
    assert decide(labels, status, code) == todo


class FakeTasks:
    """A fake that records the requests; a created task runs once it is started."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], Process] = {}
        self.created: list[tuple[str, str, CreateOptions]] = []
        self.asked: list[tuple[str, str]] = []

    async def get(self, namespace: str, name: str, exec_id: str = "") -> Process:
        self.asked.append((namespace, name))
        if (namespace, name) not in self.states:
            raise errors.NotFound.verbatim(f"task {name} not found")
        return self.states[namespace, name]

    async def create(self, namespace: str, name: str, options: CreateOptions) -> int:
        self.created.append((namespace, name, options))
        self.states[namespace, name] = Process(name, 2, Status.CREATED)
        return 2

    async def start(self, namespace: str, name: str, exec_id: str = "") -> int:
        self.states[namespace, name] = Process(name, 2, Status.RUNNING)
        return 2

    async def kill(self, namespace: str, name: str, *how: object, **more: object) -> None:
        self.states[namespace, name] = Process(name, 2, Status.STOPPED, exit_status=137)

    async def wait(self, namespace: str, name: str, exec_id: str = "") -> Exit:
        return Exit(self.states[namespace, name].exit_status, None)

    async def delete(self, namespace: str, name: str) -> Exit:
        return Exit(self.states.pop((namespace, name)).exit_status, None)


def container(name: str, labels: dict[str, str], **spec: Any) -> Container:
    return Container(
        name,
        "io.containerd.runc.v2",
        spec=Opaque("s", json.dumps(spec).encode()),
        snapshotter="native",
        snapshot_key=f"{name}-key",
        labels={STATUS: "running", **labels},
    )


async def test_a_stopped_task_is_made_anew() -> None:
    """The task is deleted, created from the snapshot's mounts with log URI, terminal and SELinux label of the
    container, and started; the count is written first.
    """
    record = container(
        "c", {LOG_URI: "binary:///logger", COUNT: "4"}, process={"terminal": True}, linux={"mountLabel": "a:b"}
    )
    node, tasks = FakeNode(record), FakeTasks()
    tasks.states["n", "c"] = Process("c", 1, Status.STOPPED)
    async with RestartMonitor(node, 0.05).running(tasks):  # type: ignore[arg-type]
        await eventually_async(lambda: _running(tasks, "c"))
    assert node.labels == [("n", "c", COUNT, "5")]
    assert tasks.created == [
        (
            "n",
            "c",
            CreateOptions(
                io=IO("", "binary:///logger", "binary:///logger", terminal=True),
                rootfs=(Mount("bind", "/native/c-key", ("rbind", 'context="a:b"')),),
            ),
        )
    ]


async def test_a_restart_is_a_trace_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client asks for it. Its root says what it was about, and how it ended."""
    exporter = Recorder()
    tracing.setup(exporter.export, loose=True)
    try:
        node, tasks = FakeNode(container("good", {}), container("bad", {})), FakeTasks()
        create = tasks.create

        async def failing(namespace: str, name: str, options: CreateOptions) -> int:
            if name == "bad":
                raise errors.Unknown("no shim")
            return await create(namespace, name, options)

        monkeypatch.setattr(tasks, "create", failing)
        for name in ("good", "bad"):
            tasks.states["n", name] = Process(name, 1, Status.STOPPED)
        async with RestartMonitor(node, 3600).running(tasks):  # type: ignore[arg-type]
            await eventually_async(lambda: asyncio.sleep(0, len(exporter.get_finished_spans()) == 2))
    finally:
        tracing.reset()
    said = {(span.attributes or {})["container.id"]: span for span in exporter.get_finished_spans()}
    assert {name: (span.name, (span.attributes or {})["splitd.outcome"]) for name, span in said.items()} == {
        "good": ("restart", "ok"),
        "bad": ("restart", "failed"),
    }
    assert all(span.parent is None for span in said.values())
    assert (said["good"].status.failed, said["bad"].status.failed) == (False, True)


async def _asked(tasks: FakeTasks) -> bool:
    return bool(tasks.asked)


async def _running(tasks: FakeTasks, name: str) -> bool:
    found = tasks.states.get(("n", name))
    return found is not None and found.status is Status.RUNNING


async def test_the_older_log_label_is_a_file() -> None:
    """restart.logpath is used as a file URI; without a log label a task has no stdio."""
    node, tasks = (
        FakeNode(container("old", {LOG_PATH: "/var/log/old"}), container("none", {}, process={"terminal": True})),
        FakeTasks(),
    )
    async with RestartMonitor(node, 0.05).running(tasks):  # type: ignore[arg-type]
        await eventually_async(lambda: _running(tasks, "old"))
        await eventually_async(lambda: _running(tasks, "none"))
    io = {name: options.io for _, name, options in tasks.created}
    assert io == {"old": IO("", "file:///var/log/old", "file:///var/log/old"), "none": IO()}


async def test_an_exit_is_answered_before_the_interval_but_not_twice_in_one() -> None:
    """A hint of an exit restarts the task at once if it still exists; a second exit waits for the interval."""
    node, tasks = FakeNode(container("c", {})), FakeTasks()
    tasks.states["n", "c"] = Process("c", 1, Status.RUNNING)
    monitor = RestartMonitor(node, 3600, delay=0.01)
    async with monitor.running(tasks):  # type: ignore[arg-type]
        await eventually_async(lambda: _asked(tasks), "it does not look")
        tasks.states["n", "c"] = Process("c", 1, Status.STOPPED)
        monitor.exited("n", "c", Exit(0, None))
        await eventually_async(lambda: _running(tasks, "c"))
        tasks.states["n", "c"] = Process("c", 1, Status.STOPPED)
        monitor.exited("n", "c", Exit(0, None))
        del tasks.states["n", "c"]
        monitor.exited("n", "c", Exit(0, None))
        await eventually_async(
            lambda: asyncio.sleep(0, not monitor._soon and not monitor._hurried), "the second exit is not heeded"
        )
    assert len(tasks.created) == 1


async def test_a_task_that_was_deleted_is_not_looked_at() -> None:
    """The task is deleted between its exit and the check: no call is made about it."""
    node, tasks = FakeNode(container("c", {})), FakeTasks()
    monitor = RestartMonitor(node, 3600, delay=0.01)
    async with monitor.running(tasks):  # type: ignore[arg-type]
        await eventually_async(lambda: _asked(tasks), "it does not look")
        tasks.asked.clear()
        monitor.exited("n", "c", Exit(0, None))
        monitor.gone("n", "c")
        monitor.gone("n", "c")
        assert not monitor._soon
        monitor.exited("n", "c", Exit(0, None))
        await eventually_async(lambda: _asked(tasks), "nobody is asked about it")
        assert tasks.asked == [("n", "c")]


async def test_a_task_that_is_stopped_on_purpose_while_it_is_looked_at_stays_stopped() -> None:
    """The label and the kill come between the monitor's list of containers and its check of the task."""
    node, tasks = FakeNode(container("c", {})), FakeTasks()
    tasks.states["n", "c"] = Process("c", 1, Status.RUNNING)
    get = tasks.get

    async def stop_and_get(namespace: str, name: str, exec_id: str = "") -> Process:
        node.records["c"] = container("c", {STOPPED: "true"})
        tasks.states["n", "c"] = Process("c", 1, Status.STOPPED)
        return await get(namespace, name, exec_id)

    tasks.get = stop_and_get  # type: ignore[method-assign]
    async with RestartMonitor(node, 0.01).running(tasks):  # type: ignore[arg-type]
        await eventually_async(lambda: asyncio.sleep(0, len(tasks.asked) > 3), "it does not look")
    assert tasks.created == []
    assert node.labels == []


async def test_stopped_is_killed_and_deleted() -> None:
    """The running task of a container that should be stopped is killed and deleted."""
    node, tasks = FakeNode(container("c", {STATUS: "stopped"})), FakeTasks()
    tasks.states["n", "c"] = Process("c", 1, Status.RUNNING)
    async with RestartMonitor(node, 0.05).running(tasks):  # type: ignore[arg-type]

        async def away() -> bool:
            return not tasks.states

        await eventually_async(away)
    assert tasks.created == []


async def test_a_start_of_the_node_ends_stopped_on_purpose_for_always(tmp_path: Path) -> None:
    """This happens once for each start of the node, which is that of this process's parent. Other policies are not
    affected, nor containers that were stopped since then. Until metadata answers, it is tried again.
    """
    node = FakeNode(
        replace(container("since", {STOPPED: "true"}), updated_at=time.time_ns() + 3600 * 10**9),
        container("always", {STOPPED: "true"}),
        container("said", {POLICY: "always", STOPPED: "1"}),
        container("unless", {POLICY: "unless-stopped", STOPPED: "true"}),
        container("failing", {POLICY: "on-failure:3", STOPPED: "true"}),
        container("odd", {POLICY: "odd", STOPPED: "true"}),
        container("free", {STOPPED: "false"}),
    )
    away = [errors.Unavailable("metadata"), errors.DeadlineExceeded("metadata")]
    namespaces = node.namespaces

    async def sometimes() -> list[str]:
        if away:
            raise away.pop()
        return await namespaces()

    node.namespaces = sometimes  # type: ignore[method-assign]

    async def looked(tasks: FakeTasks) -> list[tuple[str, ...]]:
        node.labels.clear()
        async with RestartMonitor(node, 0.01, start=NodeStart(tmp_path / "start")).running(tasks):  # type: ignore[arg-type]
            await eventually_async(lambda: _asked(tasks), "it does not look")
            return [label for label in node.labels if label[2] == STOPPED]

    stopped = dict(node.records)
    assert await looked(FakeTasks()) == [("n", "always", STOPPED, "false"), ("n", "said", STOPPED, "false")]
    node.records.update(stopped)
    assert await looked(FakeTasks()) == []
    (tmp_path / "start").write_text(
        (tmp_path / "start").read_text().replace(f" {os.getppid()} ", f" {os.getppid() + 1} ")
    )
    assert len(await looked(FakeTasks())) == 2


async def test_a_container_that_cannot_be_changed_holds_up_no_other(tmp_path: Path) -> None:
    """One record is damaged at the start of a node: the other containers are checked nevertheless, and those with the
    policy always may run.
    """
    node, tasks = FakeNode(container("bad", {STOPPED: "true"}), container("good", {STOPPED: "true"})), FakeTasks()

    async def set_label(namespace: str, name: str, key: str, value: str) -> None:
        if name == "bad":
            raise errors.DataLoss("metadata store: the record container n bad is damaged")
        node.labels.append((namespace, name, key, value))

    node.set_label = set_label  # type: ignore[method-assign]
    async with RestartMonitor(node, 0.05, delay=0.01, start=NodeStart(tmp_path / "start")).running(tasks):  # type: ignore[arg-type]
        await eventually_async(lambda: _asked(tasks), "it looks after nobody")
    assert node.labels == [("n", "good", STOPPED, "false")]


async def test_a_task_that_does_not_end_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged each time, and the monitor goes on: one process stuck in the kernel does not prevent other
    restarts.
    """
    node, tasks = FakeNode(container("hung", {STATUS: "stopped"}), container("gone", {})), FakeTasks()
    tasks.states["n", "hung"] = Process("hung", 1, Status.RUNNING)

    async def kill(namespace: str, name: str, *how: object, **more: object) -> None:
        """In vain."""

    async def wait(namespace: str, name: str, exec_id: str = "") -> Exit:
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(tasks, "kill", kill)
    monkeypatch.setattr(tasks, "wait", wait)
    async with RestartMonitor(node, 0.05, delay=0.01, ending=0.01).running(tasks):  # type: ignore[arg-type]

        async def twice() -> bool:
            return caplog.text.count("n/hung: it was killed, and has not ended within 0.01 s") >= 2

        await eventually_async(twice, "it is not said")
        await eventually_async(lambda: asyncio.sleep(0, bool(tasks.created)), "the other is not started")
    assert "begins anew" not in caplog.text


async def test_an_unexpected_failure_of_a_container_delays_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """The log names it with the failure, and the others are checked in every interval."""
    node, tasks = FakeNode(container("bad", {}), container("good", {})), FakeTasks()
    get = tasks.get

    async def fails(namespace: str, name: str, exec_id: str = "") -> Process:
        if name == "bad":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return await get(namespace, name)

    tasks.get = fails  # type: ignore[method-assign]
    async with RestartMonitor(node, 0.02, delay=0.01).running(tasks):  # type: ignore[arg-type]
        for _ in range(3):
            tasks.states["n", "good"] = Process("good", 1, Status.STOPPED)
            await eventually_async(lambda: _running(tasks, "good"), "the other is not started")
    assert "restart monitor: n/bad" in caplog.text
    assert "No space left on device" in caplog.text
    assert "begins anew" not in caplog.text
