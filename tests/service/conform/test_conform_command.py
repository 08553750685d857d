"""The command ``splitd conform``: what it prints, how it ends, and that it cleans up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.content.remote import RemoteStore
from services.kit import rpc
from services.snapshots.remote import RemoteSnapshotter
from tests.support import TOP, ServiceProcess, short_directory, splitd

pytestmark = [pytest.mark.root, pytest.mark.once]


@pytest.fixture(scope="module")
def content() -> Iterator[Path]:
    with short_directory() as directory:
        with ServiceProcess("services.content", directory / "r", directory / "s") as running:
            yield running.sockets[0]


@pytest.fixture(scope="module")
def overlayfs() -> Iterator[Path]:
    with short_directory() as directory:
        sockets = ("snapshots-overlayfs.sock", "snapshots-native.sock")
        with ServiceProcess("services.snapshots", directory / "r", directory / "s", sockets=sockets) as running:
            yield running.sockets[0]


def words(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "deploy", "conform", *map(str, arguments)]


def conform(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return splitd("conform", *arguments, env={"TMPDIR": "/dev/shm"}, seconds=60, ok=None)


def test_a_line_for_each_rule_and_a_summary(content: Path) -> None:
    """Nothing is coloured, since it goes to no terminal; the exit code is 0."""
    done = conform(content, "--type", "content", "--only", "abort", "--only", "read_pieces")
    assert done.returncode == 0, done.stderr
    first, *rules, last = done.stdout.splitlines()
    assert first.startswith(f"content at {content} (raw); what this makes begins with splitd-conform-")
    assert [line.split()[:2] for line in rules] == [["ok", "abort"], ["ok", "read-pieces"]]
    assert last.startswith("conforms: 2 rules, 2 kept, 0 broken, in ")
    assert "\x1b" not in done.stdout


def test_a_snapshotter_that_lacks_something_conforms(overlayfs: Path) -> None:
    """What is optional is told apart, also as JSON. The mounts are compared if the name says whose they are."""
    only = ("mounts", "usage", "rebase", "a-directory-of-a-lower-layer-is-renamed")
    done = conform(
        overlayfs,
        "--type",
        "snapshot",
        "--snapshotter",
        "overlayfs",
        "--json",
        *(w for n in only for w in ("--only", n)),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["conforms"] is True
    assert {rule["rule"]: rule["outcome"] for rule in found["rules"]} == {
        **dict.fromkeys(only, "ok"),
        only[-1]: "not offered",
    }
    assert found["left"] == []
    native = overlayfs.with_name("snapshots-native.sock")
    done = conform(native, "--type", "snapshot", "--only", "rebase", "--json")
    (rule,) = json.loads(done.stdout)["rules"]
    assert (done.returncode, rule["outcome"]) == (0, "not offered")
    assert rule["reason"].startswith("rebase: rebase of snapshot ")


def test_rules_are_listed_with_their_sources() -> None:
    """No address is needed."""
    done = conform("--type", "content", "--list")
    assert done.returncode == 0
    assert "\nlocate (optional: LocalFiles)\n  A blob's file has its bytes and its size" in done.stdout
    listed = json.loads(conform("--type", "snapshot", "--list", "--json").stdout)
    assert all(each["source"] and each["promise"] for each in listed)
    assert len(listed) > 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("CONTENT",), "say what it serves: --type content, or --type snapshot"),
        (("--type", "content"), "say where it listens"),
        (("CONTENT", "--type", "content", "--only", "abrot"), "rule 'abrot' is not known, did you mean 'abort'?"),
        (("CONTENT", "--type", "snapshot"), "does not serve containerd.services.snapshots.v1.Snapshots; it serves the other type: --type content"),
        (("/nowhere.sock", "--type", "content", "--timeout", "0.5"), "service /nowhere.sock is not reachable"),
        (("nowhere", "--type", "content"), "address: 'nowhere' is neither /path nor unix:///path of a socket, nor HOST:PORT"),
        (("CONTENT", "--type", "content", "--timeout", "0"), "--timeout 0: between 0 and 600 seconds"),
    ],
)  # fmt: skip
def test_what_cannot_be_tried_is_2(content: Path, arguments: tuple[str, ...], message: str) -> None:
    done = conform(*(str(content) if word == "CONTENT" else word for word in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_service_that_answers_nothing_is_bounded(place: Path) -> None:
    """It accepts connections and says nothing at all, not even HTTP/2's settings; or it stops in the middle."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(place / "s"))
        silent.listen()
        done = conform(place / "s", "--type", "content", "--timeout", "0.5")
    assert done.returncode == 2
    assert "no answer within 0.5 s" in done.stderr or "not reachable" in done.stderr


async def test_the_store_of_a_node_is_left_alone(place: Path) -> None:
    """Its collector would take what the rules make."""
    with ServiceProcess("services.content", place / "r", place / "s") as running:
        (place / "r/content/store-id").write_text("one\n")
        done = conform(running.sockets[0], "--type", "content", "--only", "abort")
        assert done.returncode == 2
        assert "is the store of a splitd node (one), whose collector" in done.stderr
        done = conform(running.sockets[0], "--type", "content", "--only", "abort", "--allow-writes")
        assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_cleans_up(content: Path, overlayfs: Path, number: signal.Signals) -> None:
    """Whatever was made is removed: blobs, ingests, snapshots and mounts."""
    for at, kind, rule in ((content, "content", "list-many"), (overlayfs, "snapshot", "many-layers")):
        only = ("--only", "abort" if kind == "content" else "stat", "--only", rule)
        process = await asyncio.create_subprocess_exec(
            *words(at, "--type", kind, *only),
            cwd=TOP,
            stdout=-1,
            stderr=-1,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        await process.stdout.readline()
        await process.stdout.readline()  # the first rule has ended; the second lasts for a second
        async with rpc.Channel(at) as channel:
            store, snapshotter = RemoteStore(channel), RemoteSnapshotter(channel)

            async def made() -> list[object]:
                listed = store.list() if kind == "content" else snapshotter.list()  # noqa: B023
                return [info async for info in listed]

            while len(await made()) < 5:
                assert process.returncode is None
            process.send_signal(number)
            out, err = await asyncio.wait_for(process.communicate(), 30)
            assert process.returncode == 128 + number, err
            assert b"not done: 1 rules" in out
            assert b"(interrupted; 1 not tried)" in out
            assert err == b""
            assert await made() == []
            if kind == "content":
                assert await store.list_statuses() == []
