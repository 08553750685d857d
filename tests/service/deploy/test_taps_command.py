"""``splitd tap`` and ``splitd fault`` beside a gateway: what they print, and their exit codes."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.splitd.taps.v1 import taps_pb2, taps_stubs
from services.kit import errors, rpc
from tests.support import TOP, ServiceProcess, eventually_async, short_directory, splitd, within

pytestmark = [pytest.mark.once, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A gateway and metadata at ``r`` and ``s``."""
    with short_directory() as found, contextlib.ExitStack() as stack:
        for module, sockets in (("services.metadata", ()), ("gateway", ("internal.sock", "containerd.sock"))):
            stack.enter_context(ServiceProcess(module, found / "r", found / "s", sockets=sockets))
        yield found


def run(place: Path, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    return splitd(*words, "--root", place / "r", "--state", place / "s", ok=ok)


async def get(place: Path, name: str = "n") -> None:
    async with rpc.Channel(place / "s" / "containerd.sock", "gateway") as channel:
        await channel.client(namespaces_stubs.NAMESPACES).Get(
            namespaces_pb2.GetNamespaceRequest(name=name), headers={rpc.NAMESPACE: "ns"}
        )


async def stands(place: Path) -> bool:
    """Whether there is a tap."""
    async with rpc.Channel(place / "s" / "internal.sock", "gateway") as channel:
        return bool((await channel.client(taps_stubs.TAPS).List(taps_pb2.ListRequest())).taps)


@contextlib.contextmanager
def tapping(place: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """``splitd tap``, as soon as it sees calls: its head line has come."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy", "tap", *words, "--root", str(place / "r"), "--state", str(place / "s")],
        cwd=TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_calls_are_lines(place: Path) -> None:
    """After the head; it ends after so many calls."""
    with tapping(place, "--service", "metadata", "--method", "Get", "--messages", "--count", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == [
            "BEGAN",
            "SERVICE",
            "METHOD",
            "NAMESPACE",
            "SENT",
            "RECEIVED",
            "TOOK",
            "CODE",
        ]
        await get(place, "some-name")
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    sent, received, call = out.splitlines()
    assert re.fullmatch(r"[\d:.]{12}  #1 > Namespaces/Get 11 B: name: \"some-name\"", sent)
    assert "#1 < Namespaces/Get" in received
    assert re.fullmatch(
        r"[\d:.]{12}  metadata +#1 Namespaces/Get +ns +11 B +[\d.]+ B +[\d.]+ms  OK(  [0-9a-f]{32})?", call
    )


async def test_json_for_programs_and_ctrl_c(place: Path) -> None:
    """One object a line."""
    with tapping(place, "--json", "--namespace", "ns") as process:
        await eventually_async(lambda: stands(place), "the tap does not stand")
        await get(place)
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        assert found["event"] == "call"
        assert found["method"] == "containerd.services.namespaces.v1.Namespaces/Get"
        assert (found["service"], found["namespace"], found["code"], found["error"]) == ("metadata", "ns", "OK", None)
        assert found["sent"]["messages"] == found["received"]["messages"] == 1
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")


async def test_a_tap_that_nobody_reads_any_more_ends_as_by_sigpipe(place: Path) -> None:
    """Without a word, though no call passes."""
    with tapping(place) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("BEGAN")
        process.stdout.close()
        assert process.wait(20) == -signal.SIGPIPE
        assert process.stderr.read() == ""


async def test_a_tap_says_that_its_output_is_full(place: Path) -> None:
    """And blames no disk of the node."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "deploy", "tap", "--root", str(place / "r"), "--state", str(place / "s")],
            cwd=TOP,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "splitd: standard output: no space left on device\n")


async def test_a_fault_comes_is_listed_and_goes(place: Path) -> None:
    """Each command says what is true; splitd routes shows it too."""
    said = run(
        place, "fault", "metadata.Get", "--error", "unavailable", "--share", "100%", "--for", "90s", "--seed", "7"
    ).stdout.splitlines()
    found = re.match(r"fault (f\d+), over in 1m30s: 100 % of metadata.Get: UNAVAILABLE, before the call$", said[0])
    assert found
    assert said[1].startswith(f"errors say: injected by splitd fault ({found[1]}); ")
    with pytest.raises(errors.Unavailable, match="injected by splitd fault"):
        await get(place)
    (listed,) = json.loads(run(place, "fault", "--list", "--json").stdout)
    assert (listed["id"], listed["calls"], listed["injected"]) == (found[1], 1, 1)
    assert 0 < listed["left"] < 90
    table = run(place, "fault", "--list").stdout.splitlines()
    assert table[0].split() == ["FAULT", "OVER", "IN", "CALLS", "INJECTED", "WHAT"]
    assert f"fault {found[1]}: 100 % of metadata.Get" in run(place, "routes").stdout
    assert run(place, "fault", "--stop", found[1]).stdout == f"fault {found[1]} has ended: it was in 1 of 1 calls\n"
    await get(place)
    for _ in range(2):
        run(place, "fault", "images.*", "--latency", "200ms")
    assert len(run(place, "fault", "--stop", "--all").stdout.splitlines()) == 2
    assert run(place, "fault", "--list").stdout == "there are no faults\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("fault",), 2, "say SERVICE.METHOD with --latency or --error"),
        (("fault", "content", "--error", "UNKNOWN"), 2, "content: say SERVICE.METHOD, such as content.Write"),
        (("fault", "content.Write"), 2, "say --latency, or --error, or both"),
        (("fault", "content.Write", "--error", "BROKEN"), 1, "error 'BROKEN' is none of CANCELLED"),
        (("fault", "content.Wirte", "--error", "UNKNOWN"), 1, "no method 'Wirte' (did you mean Write?)"),
        (("fault", "metadata.Finish", "--error", "UNKNOWN"), 1, "is bookkeeping that the gateway owes"),
        (
            ("fault", "content.*", "--error", "UNKNOWN", "--share", "200%"),
            2,
            "'200%': it is more than 0% and at most 100%",
        ),
        (("fault", "content.*", "--error", "UNKNOWN", "--for", "0s"), 2, "'0s': it is longer than 0"),
        (("fault", "content.*", "--error", "UNKNOWN", "--for", "soon"), 2, "'soon' is not a duration"),
        (("fault", "content.*", "--error", "UNKNOWN", "--before", "--after"), 2, "not allowed with argument"),
        (("fault", "--stop", "f99"), 1, "there is no fault 'f99' (splitd fault --list shows them)"),
        (("fault", "--stop"), 2, "say --stop ID, or --all"),
        (("fault", "--list", "--all"), 2, "say SERVICE.METHOD"),
        (("tap", "--service", "contents"), 1, "did you mean content?"),
        (("tap", "--count", "0"), 2, "'0' is no number of calls: 1 or more"),
        (("tap", "--method", "Wirte"), 1, "did you mean Write?"),
    ],
)
def test_what_cannot_be_done_is_one_line(place: Path, words: tuple[str, ...], code: int, said: str) -> None:
    """It says what is wrong."""
    done = run(place, *words, ok=False)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_node_it_says_how_to_start_one(place: Path) -> None:
    """At once; the exit code is that of every verb."""
    for words in (("tap",), ("fault", "--list")):
        with within(4):
            done = splitd(*words, "--root", place / "x", "--state", place / "y", ok=False)
        assert (done.returncode, done.stderr.count("no node is up at")) == (3, 1)
