"""``splitd fleet pull``: what it refuses, and how it shows the nodes and ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

import pytest

from deploy import splitd
from deploy.fleet import pull
from deploy.fleet.pull import Shown
from services.fleet.orders import NodePull, Order, State

BOX = "docker.io/library/box:1"
DIGEST = "sha256:" + "1" * 64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("box",), "say on which nodes: --nodes N, --nodes all, or --on NODE,NODE"),
        (("box", "--nodes", "2", "--on", "a"), "say on which nodes"),
        (("box", "--nodes", "0"), "'0' is no number of nodes: 1 to 1000, or all"),
        (("box", "--nodes", "2", "--at-once", "101"), "'101' nodes at once: 1 to 100"),
        (("http://x", "--on", "a"), "invalid reference"),
        (("box", "--on", "a/b"), "a/b"),
    ],
)
def test_what_makes_no_sense_is_refused(words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In words, before any node is asked."""
    with pytest.raises(SystemExit) if "is no number" in said or "at once" in said else contextlib.nullcontext():
        assert splitd.answered(["fleet", "pull", *words]) in (1, 2)
    assert said in capsys.readouterr().err


def ended(order: Order, pulls: Sequence[NodePull], *, as_json: bool = False) -> int:
    shown = Shown(order.image, as_json=as_json)
    for each in pulls:
        shown.changed(each)
    return pull.outcome(order, shown)


def order(nodes: int = 0, on: tuple[str, ...] = ()) -> Order:
    return Order(image=BOX, namespace="default", nodes=nodes, on=on)


def done(node: str, digest: str = DIGEST) -> NodePull:
    return NodePull(node, State.DONE, 2048, 2048, digest)


HAS = NodePull("c", State.PRESENT, digest=DIGEST)
FULL = NodePull("b", State.REFUSED, error="the disk is full")


@pytest.mark.parametrize(
    ("wanted", "pulls", "code"),
    [
        (order(), [done("a"), HAS], 0),
        (order(), [HAS], 0),
        (order(), [done("a"), FULL], 1),
        (order(1), [done("a"), FULL], 0),
        (order(2), [done("a"), HAS, FULL], 0),
        (order(2), [done("a"), FULL], 1),
        (order(on=("a", "b")), [done("a"), NodePull("b", State.FAILED, error="x")], 1),
    ],
)
def test_it_is_done_if_so_many_have_the_image(wanted: Order, pulls: Sequence[NodePull], code: int) -> None:
    """Nodes that had an image of its name count. A node that refused does only if all were wanted, or this one."""
    assert ended(wanted, pulls) == code


def test_what_people_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, a line for each node that has ended, with its error, and the result."""
    assert ended(order(4), [NodePull("a", State.PULLING, 1, 5), done("a", DIGEST + "2"), FULL, HAS, done("d")]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "a  done  2.0 KiB",
        "b  refused  the disk is full",
        "c  present",
        "d  done  2.0 KiB",
        f"{BOX}: pulled on 2 nodes; 1 node had an image of this name",
    ]
    assert "the nodes do not have the same" in err
    assert "4 nodes were wanted, and no other can pull it" in err


def test_what_programs_read(capsys: pytest.CaptureFixture[str]) -> None:
    """A line of JSON for each change, and the outcome."""
    ended(order(), [NodePull("a", State.PULLING, 1, 5), done("a"), FULL], as_json=True)
    first, _, second, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"node": "a", "state": "pulling", "bytes": 1, "total": 5}
    assert second["error"] == "the disk is full"
    assert last == {
        "outcome": "failed",
        "image": BOX,
        "digests": [DIGEST],
        "pulled": ["a"],
        "present": [],
        "failed": {"b": "the disk is full"},
    }


def test_what_a_terminal_shows() -> None:
    """Nodes that pull come first, whatever does not fit is left out, and names from outside do nothing to it."""
    pulls = [done("a"), NodePull("b", State.WAITING), NodePull("c", State.PULLING, 1024, 4096), FULL]
    pulls.append(NodePull("z\x1b", State.FAILED, error="no\nspace"))
    assert pull.lines(pulls, "box", 80, 6) == [
        "box",
        "c  pulling  1.0 KiB of 4.0 KiB",
        r"z\x1b  failed  no\nspace",
        "b  refused  the disk is full",
        "3 of 5 nodes are done",
    ]
    assert all(len(line) < 12 for line in pull.lines(pulls, "box", 12, 20))
