"""The watchdog's decisions, second by second: which processes are dumped and killed, reported, or left alone."""

from __future__ import annotations

import signal

import pytest

from deploy.inside.watchdog import Child, Limits, Watchdog

DUMP, KILL = int(signal.SIGUSR1), int(signal.SIGKILL)


class FakeKernel:
    """States of processes by pid (S by default), and the signals that were sent."""

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.sent: list[tuple[int, int]] = []

    def state(self, pid: int) -> str:
        return self.states.get(pid, "S")

    def waits_in(self, pid: int) -> str:
        return f"nfs_wait_{pid}"

    def signal(self, pid: int, number: int) -> None:
        self.sent.append((pid, number))


class Node:
    """A watchdog with the default limits, and a clock: it checks once a second."""

    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.said: list[str] = []
        self.watchdog = Watchdog(
            Limits(silence=30.0, start=300.0, beat=3.0),
            self.kernel,
            lambda name, words: self.said.append(f"{name}: {words}"),
        )
        self.now = 1000.0
        self.children = {"content": Child("content", 7, stopping=False)}
        self.second()
        self.beat()

    def second(self, length: float = 1.0) -> None:
        self.now += length
        self.watchdog.look(self.now, self.now + 1e9, self.children.values())

    def seconds(self, count: int, length: float = 1.0) -> None:
        for _ in range(count):
            self.second(length)

    def beat(self, pid: int = 7) -> None:
        self.watchdog.heard(pid, serving=True)

    @property
    def sent(self) -> list[tuple[int, int]]:
        return self.kernel.sent


@pytest.fixture
def node() -> Node:
    return Node()


def test_a_process_that_beats_is_left_alone(node: Node) -> None:
    """It beats for an hour, every three seconds."""
    for _ in range(1200):
        node.seconds(3)
        node.beat()
    assert not node.sent
    assert node.watchdog.late("content") == 0.0


def test_a_silent_process_writes_its_stacks_and_is_then_killed_once(node: Node) -> None:
    """It is not killed before 30 s, since the last beat may have been right before it hung or a beat's pause earlier,
    and not after 40 s. Both logs have it, and the count has the reason.
    """
    node.seconds(32)
    assert node.watchdog.late("content") == 32.0
    assert not node.sent
    node.seconds(2)
    assert node.sent == [(7, DUMP)]
    node.seconds(4)
    assert node.sent == [(7, DUMP), (7, KILL)]
    assert [line.partition(" for ")[0] for line in node.said] == [
        "content: pid 7 has not answered",
        "content: pid 7 is killed: no answer",
    ]
    kills = node.watchdog.kills["content"]
    assert (kills.count, kills.why) == (1, "no answer for 35 s")


def test_the_successor_of_a_killed_process_has_its_own_time(node: Node) -> None:
    """It has another pid and is starting; only the count remembers its predecessor."""
    node.seconds(40)
    node.children["content"] = Child("content", 8, stopping=False)
    node.seconds(200)
    assert node.sent == [(7, DUMP), (7, KILL)]
    assert node.watchdog.kills["content"].count == 1


def test_a_process_that_answers_after_the_question_is_spared(node: Node) -> None:
    """It beats between the stacks and the kill: it was slow, not hung."""
    node.seconds(33)
    assert node.sent == [(7, DUMP)]
    node.beat()
    node.seconds(20)
    assert node.sent == [(7, DUMP)]
    assert node.said[-1] == "content: pid 7 answers again after 33 s"


@pytest.mark.parametrize("state", ["T", "t"])
@pytest.mark.parametrize("before", [1, 29, 33])
def test_a_stopped_process_is_not_killed_and_has_all_of_the_time_when_it_goes_on(
    node: Node, state: str, before: int
) -> None:
    """The stop of 40 s, by SIGSTOP or a debugger, may also fall between the stacks and the kill; then 20 s pass without
    a beat, and then it beats.
    """
    node.seconds(before)
    node.kernel.states[7] = state
    node.seconds(40)
    del node.kernel.states[7]
    node.seconds(20)
    node.beat()
    node.seconds(30)
    assert (7, KILL) not in node.sent


def test_one_that_hangs_when_it_goes_on_is_killed_after_all(node: Node) -> None:
    """A stop only delays the kill."""
    node.kernel.states[7] = "T"
    node.seconds(100)
    node.kernel.states[7] = "R"
    node.seconds(40)
    assert node.sent == [(7, DUMP), (7, KILL)]


def test_one_that_waits_in_the_kernel_is_reported_once_and_killed_when_it_no_longer_does(node: Node) -> None:
    """In state D no signal reaches it, so none is sent; the log names the place where it waits."""
    node.kernel.states[7] = "D"
    node.seconds(100)
    assert not node.sent
    assert node.said == [
        (
            "content: pid 7 has not answered for 33 s and waits in the kernel (nfs_wait_7), where nothing can end it: "
            "not "
            "killed"
        )
    ]
    node.kernel.states[7] = "R"
    node.seconds(4)
    assert node.sent == [(7, DUMP), (7, KILL)]


def test_one_that_is_dead_and_cannot_be_waited_for_is_killed_once(node: Node) -> None:
    """One of its threads is in the kernel, and the others are gone: another kill would change nothing, and its pid
    cannot be another's.
    """
    node.seconds(40)
    node.kernel.states[7] = "Z"
    node.seconds(200)
    assert node.sent == [(7, DUMP), (7, KILL)]
    assert node.watchdog.kills["content"].count == 1
    assert node.said[-1].endswith("and is dead, but a thread of it still waits in the kernel")


def test_time_in_which_the_watchdog_did_not_run_does_not_count(node: Node) -> None:
    """A suspend of an hour, a pause of half a minute, and checks that each come late: no process is judged by them."""
    node.second(3600.0)
    node.seconds(10)
    node.second(40.0)
    node.seconds(10)
    node.seconds(50, length=2.5)
    assert not node.sent
    node.seconds(20)
    assert node.sent == [(7, DUMP), (7, KILL)]


def test_a_start_has_its_own_limit(node: Node) -> None:
    """A process that does not serve yet may take up to five minutes; one that takes longer is asked for its stacks and
    killed too.
    """
    node.children["tasks"] = Child("tasks", 9, stopping=False)
    for _ in range(100):
        node.seconds(3)
        node.beat()
    assert not node.sent
    node.seconds(4)
    assert node.sent == [(9, DUMP), (9, KILL)]
    assert node.watchdog.kills["tasks"].why == "did not serve, or end, within 302 s"


def test_a_process_that_was_told_to_end_has_the_limit_of_a_start(node: Node) -> None:
    """The SIGTERM is not supervisord's: the process itself reports it."""
    node.watchdog.heard(7, serving=False)
    node.seconds(290)
    assert not node.sent
    node.seconds(15)
    assert node.sent == [(7, DUMP), (7, KILL)]


def test_a_process_that_is_stopped_on_purpose_is_left_to_its_supervisor(node: Node) -> None:
    """It may be silent before, meanwhile and afterwards: supervisord kills it when stopwaitsecs are over."""
    node.seconds(33)
    node.children["content"] = Child("content", 7, stopping=True)
    node.seconds(100)
    assert node.sent == [(7, DUMP)]


def test_a_heartbeat_of_an_unknown_pid_changes_nothing(node: Node) -> None:
    """The kernel names the sender: another's heartbeat does not count for a process that hangs."""
    for _ in range(40):
        node.second()
        node.beat(4711)
    assert node.sent == [(7, DUMP), (7, KILL)]


def test_services_come_and_go(node: Node) -> None:
    """A removed one is forgotten, and one that comes back starts anew."""
    node.seconds(20)
    there = node.children.pop("content")
    node.seconds(20)
    assert not node.watchdog.watched
    node.children["content"] = there
    node.seconds(200)
    assert not node.sent
