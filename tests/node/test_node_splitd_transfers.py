"""splitd pull, push and images on a whole node, as an operator sees them: on a terminal, in a pipe, as JSON, and on
failures.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from api.containerd.services.images.v1 import images_pb2, images_stubs
from client.progress import _RANKS, Stage
from deploy.samples import Image, Registry, image, index, tar_of
from services.kit.rpc import Channel
from services.oci import platforms
from tests.fake_registry import Auth, FakeRegistry, Serve, slow, status
from tests.node.test_node_pulls import Client, config_of, gets, made
from tests.support import Node, eventually_async, splitd
from tests.terminal import Terminal, terminal

pytestmark = [pytest.mark.node, pytest.mark.root]

T = TypeVar("T")
WAITS = re.compile(r"splitd: (waiting for \S+: |\S+ (does not answer|has sent nothing))")
"""A line about what is waited for."""
RESUMED = "splitd: cancelled; what has arrived is kept for a day, and the same command continues with it"


@pytest.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    async with Channel(node.socket) as channel:
        yield Client(channel, "default")


async def run(node: Node, *words: str, ok: bool | None = True) -> subprocess.CompletedProcess[str]:
    """Run splitd while this loop serves its registry."""
    return await asyncio.to_thread(node.splitd, words[0], *words[1:], ok=ok)


async def on_terminal(node: Node, words: list[str], see: Callable[[Terminal], T], **options: Any) -> T:
    """Run splitd on a terminal in a thread; return the result of ``see``."""

    def look() -> T:
        with terminal([sys.executable, "-m", "deploy", *words, "--state", node.state], **options) as running:
            return see(running)

    return await asyncio.to_thread(look)


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class Gate:
    """A gate that lets blobs through up to a byte, and the rest when it is opened; until then a byte now and then, so
    that the node does not take it for hung.
    """

    def __init__(self, bytes_: int) -> None:
        self._bytes = bytes_
        self.opened = asyncio.Event()
        self.ended = 0

    async def __call__(self, request: Any, serve: Serve) -> Any:
        from aiohttp import web

        right = await serve()
        assert isinstance(right, web.Response)
        assert isinstance(right.body, bytes)
        answer = web.StreamResponse(status=right.status, headers=right.headers)
        answer.content_length = len(right.body)
        await answer.prepare(request)
        try:
            await answer.write(right.body[: self._bytes])
            sent, told = self._bytes, asyncio.get_running_loop().time()
            while not self.opened.is_set() and request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.02)  # aiohttp does not tell a handler that its client went away
                if sent + 1 < len(right.body) and asyncio.get_running_loop().time() > told + 1:
                    await answer.write(right.body[sent : sent + 1])
                    sent, told = sent + 1, asyncio.get_running_loop().time()
            if self.opened.is_set():
                await answer.write(right.body[sent:])
                await answer.write_eof()
        finally:
            self.ended += 1
        return answer


def layers_of(box: Image) -> list[str]:
    return [digest.partition(":")[2][:12] for digest in box.layers]


# ---------------------------------------------------------------------------------------------- pull


async def test_a_pull_on_a_terminal_shows_a_bar_for_each_layer_and_ends_clean(node: Node, fake: FakeRegistry) -> None:
    """Bars are shown during the pull, over a change of the window's size; at the end there is one line for each layer
    and one for all.
    """
    box, gate = made(3, 3000), Gate(2 << 20)
    reference = fake.add(box, "team/shown:1")
    fake.inject("blob", gate, times=4, method="GET")
    loop = asyncio.get_running_loop()

    def rows(lines: list[str]) -> list[str]:
        return [line.split()[0] for line in lines if line.split()[0] in layers_of(box)]

    def see(shown: Terminal) -> list[str]:
        lines = shown.until(lambda lines: sum("downloading  [" in line for line in lines) >= 2, "no bars")
        assert lines[0].startswith(f"pulling {reference}")
        assert set(rows(lines)) == set(layers_of(box))
        assert lines[-1].startswith("total")
        for columns, height, bars in ((60, 12, False), (100, 24, True)):
            shown.resize(columns, height)
            lines = shown.until(
                lambda lines: lines and lines[-1].startswith("total") and ("[" in lines[-1]) == bars,  # noqa: B023
                "not redrawn after a change of size",
            )
            assert sum(line.startswith("pulling") for line in lines) == 1, lines
        loop.call_soon_threadsafe(gate.opened.set)
        assert shown.wait() == 0
        assert not shown.screen.cursor.hidden
        return shown.lines

    lines = await on_terminal(node, ["pull", "--plain-http", reference], see)
    assert [line.split()[1] for line in lines[:3]] == ["done"] * 3, lines
    assert set(rows(lines[:3])) == set(layers_of(box))
    rest = "".join(lines[3:])
    assert rest.startswith(f"pulled {reference}@{box.digest}: ")
    assert rest.endswith(", 3 layers")


async def test_a_terminal_says_what_is_waited_for(node: Node, fake: FakeRegistry) -> None:
    """A registry that asks for a pause: below the bars, until the pause is over."""
    reference = fake.add(made(1), "team/waiting:1")
    fake.inject("blob", status(429, Retry_After="2"), method="GET")

    def see(shown: Terminal) -> list[str]:
        words = f"waiting for {fake.host}: asked to wait 2 s (429)"
        lines = shown.until(lambda lines: lines and lines[-1] == words, "nobody says what is waited for")
        assert lines[0].startswith(f"pulling {reference}")
        shown.until(lambda lines: lines and words not in lines, "it is said for ever")
        assert shown.wait() == 0
        return shown.lines

    lines = await on_terminal(node, ["pull", "--plain-http", reference], see)
    assert "".join(lines[1:]).startswith(f"pulled {reference}@")


async def test_what_another_namespace_has_is_shown_as_there(node: Node, fake: FakeRegistry) -> None:
    """None of its bytes came."""
    reference = fake.add(made(2), "team/shared:1")
    await run(node, "pull", "--plain-http", reference)
    done = await run(node, "pull", "--plain-http", "-n", "elsewhere", "--json", reference)
    last = objects(done.stdout)[-1]
    assert (last["outcome"], last["bytes"], last["layers"], last["existing"]) == ("done", 0, 2, 2)
    await run(node, "images", "-n", "elsewhere", "rm", reference)


async def test_a_pull_in_a_pipe_is_one_line(node: Node, fake: FakeRegistry) -> None:
    """The line says what was fetched, or that it was there already; --quiet prints nothing. The container runs."""
    reference = fake.add(made(2), "team/piped:1")
    first = await run(node, "pull", "--plain-http", reference)
    assert first.stderr == ""
    (line,) = first.stdout.splitlines()
    assert line.startswith(f"pulled {reference}@sha256:")
    assert line.endswith(", 2 layers")
    again = await run(node, "pull", "--plain-http", reference)
    assert ": 0 B in " in again.stdout
    assert again.stdout.endswith(", 2 layers, all of them there already\n")
    assert (await run(node, "pull", "--plain-http", "--quiet", reference)).stdout == ""


async def test_a_pull_as_json_tells_each_change_and_the_outcome(node: Node, fake: FakeRegistry) -> None:
    """Bytes never decrease within a stage, and stages never go back; the last line has the outcome."""
    box = made(2, 3000)
    reference = fake.add(box, "team/json:1")
    fake.inject("blob", slow(2_000_000, 100_000), times=3, method="GET")
    *changes, outcome = objects((await run(node, "pull", "--plain-http", "--json", reference)).stdout)
    last: dict[str, tuple[int, int]] = {}
    for change in changes:
        assert set(change) == {"name", "digest", "stage", "bytes", "total", "rate"}
        now = (_RANKS[Stage(change["stage"])], change["bytes"])
        assert now >= last.get(change["name"], (0, 0)), change
        assert change["bytes"] <= change["total"]
        assert change["rate"] >= 0
        last[change["name"]] = now
    assert {f"layer-{digest}" for digest in box.layers} | {f"config-{config_of(box)}", f"manifest-{box.digest}"} <= set(
        last
    )
    assert {change["stage"] for change in changes if change["digest"] == box.layers[1]} >= {
        "waiting",
        "downloading",
        "done",
    }
    assert any(change["rate"] > 0 for change in changes)
    assert outcome.pop("seconds") > 0
    assert outcome.pop("rate") > 0
    fetched = sum(len(box.blobs[digest]) for digest in {change["digest"] for change in changes})
    assert outcome == {
        "outcome": "done",
        "reference": reference,
        "digest": box.digest,
        "layers": 2,
        "existing": 0,
        "otherPlatforms": [],
        "bytes": fetched,
    }


async def test_ctrl_c_cancels_in_the_node_and_the_same_command_goes_on(
    node: Node, client: Client, fake: FakeRegistry
) -> None:
    """The registry's connections end. Complete layers, and the bytes of incomplete ones, are not fetched again."""
    box, gate = made(2, 3000), Gate(2 << 20)
    reference = fake.add(box, "team/resumed:1")
    fake.inject(box.layers[1], gate, method="GET")

    def see(shown: Terminal) -> list[str]:
        shown.until(
            lambda lines: (
                any("done" in line for line in lines)
                and any(re.search(r"downloading .* [12]\.\d/2\.9 MiB", line) for line in lines)
            ),
            "the first layer is not done, or the second does not move",
        )
        shown.type("\x03")
        assert shown.wait() == 130
        return shown.lines

    lines = await on_terminal(node, ["pull", "--plain-http", reference], see, columns=120)
    assert lines[-1] == RESUMED
    assert sum("downloading" in line for line in lines) == 1

    async def ended() -> bool:
        return gate.ended == 1

    await eventually_async(ended, "the node goes on with a cancelled pull")
    assert reference not in await client.images()
    await client.collect()
    before = len(fake.seen)
    outcome = objects((await run(node, "pull", "--plain-http", "--json", reference)).stdout)[-1]
    assert (outcome["outcome"], outcome["layers"], outcome["existing"]) == ("done", 2, 1)
    begun = int(gets(fake, box.layers[1])[-1]["Range"].removeprefix("bytes=").split("-")[0])
    assert begun >= 1 << 19
    assert outcome["bytes"] <= len(box.blobs[box.layers[1]]) - begun + len(box.blobs[box.digest])
    asked = [seen.path.rpartition("/")[2] for seen in fake.seen[before:] if "/blobs/" in seen.path]
    assert asked == [box.layers[1]]
    assert not await client.leases()


async def test_the_ingests_of_an_interrupted_pull_are_listed_and_can_be_dropped(
    node: Node, client: Client, fake: FakeRegistry
) -> None:
    """Its lease with the complete layers, and its ingests, are listed; running pulls, and leases of other clients, are
    not.
    """
    ended, goes_on, gates = made(2, 3000), made(1, 2000), (Gate(2 << 20), Gate(1 << 20))
    references = fake.add(ended, "team/dropped:1"), fake.add(goes_on, "team/running:1")
    for box, gate in zip((ended, goes_on), gates, strict=True):
        fake.inject(box.layers[-1], gate, method="GET")
    foreign = node.out("leases", "create", "-x", "3600s").strip()
    pulls = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "deploy",
            "pull",
            "-q",
            "--plain-http",
            reference,
            "--state",
            node.state,
            cwd=Path(__file__).parents[2],
            stderr=subprocess.DEVNULL,
        )
        for reference in references
    ]

    async def listed() -> tuple[dict[str, dict[str, Any]], set[str]]:
        """Return leases by their pull or by their name, and the refs of ingests that have bytes."""
        found = json.loads((await run(node, "leases", "--json")).stdout)
        return {lease["pull"] or lease["lease"]: lease for lease in found["leases"]}, {
            ingest["ref"] for ingest in found["ingests"] if ingest["bytes"]
        }

    async def under_way() -> bool:
        leases, refs = await listed()
        held = {resource["id"] for resource in leases.get(references[0], {"resources": []})["resources"]}
        return ended.layers[0] in held and all(any(box.layers[-1] in ref for ref in refs) for box in (ended, goes_on))

    try:
        await eventually_async(under_way, "the pulls have not got that far", 60)
        pulls[0].send_signal(signal.SIGINT)
        await pulls[0].wait()
        lines = (await run(node, "leases", "ls")).stdout.splitlines()
        assert sum(line.endswith(references[0]) and " blobs (" in line for line in lines) == 1, lines
        assert sum(line.endswith(f"{references[1]} (under way)") for line in lines) == 1, lines
        removed = (await run(node, "leases", "rm", "--interrupted", "--sync")).stdout.splitlines()
        assert [line.partition("-")[0] for line in removed] == ["removed lease splitd", "removed ingest layer"], removed
        leases, refs = await listed()
        assert references[0] not in leases
        assert {references[1], foreign} <= set(leases)
        assert not any(ended.layers[-1] in ref for ref in refs)
        assert ended.layers[0] not in node.out("content", "ls", "-q").split()
    finally:
        gates[1].opened.set()
        assert await pulls[1].wait() == 0
    assert (await run(node, "leases", "remove", foreign)).stdout == f"removed lease {foreign}\n"


async def test_sigterm_cancels_too_and_json_says_so(node: Node, client: Client, fake: FakeRegistry) -> None:
    """The exit code is 143. No byte had arrived: no lease is left."""
    box, gate = made(1), Gate(0)
    reference = fake.add(box, "team/ended:1")
    fake.inject("manifest", gate, times=9)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "deploy",
        "pull",
        "--plain-http",
        "--json",
        reference,
        "--state",
        node.state,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    async def asked() -> bool:
        return bool(fake.asked(part="/manifests/"))

    await eventually_async(asked, "the node asks for no manifest", 60)
    process.send_signal(signal.SIGTERM)
    out, err = await process.communicate()
    assert process.returncode == 143
    assert objects(out.decode())[-1] == {"outcome": "cancelled", "reference": reference}
    assert err.decode().splitlines() == [RESUMED]
    assert reference not in {labels.get("splitd.io/pull") for labels in (await client.leases()).values()}


async def test_a_name_with_a_tag_and_a_digest(node: Node, fake: FakeRegistry) -> None:
    """The image is pushed under the tag, from the image with that tag, unless that has another digest. The output has
    one digest.
    """
    box, another = made(1), made(1)
    reference = fake.add(box, "team/both:1")
    done = await run(node, "pull", "--plain-http", f"{fake.host}/team/both@{box.digest}")
    assert done.stdout.startswith(f"pulled {fake.host}/team/both@{box.digest}: ")
    await run(node, "pull", "--plain-http", reference)
    to = f"{fake.host}/team/pushed:2"
    done = await run(node, "push", "--plain-http", "--source", reference, f"{to}@{box.digest}")
    assert done.stdout.startswith(f"pushed {to}@{box.digest}: ")
    assert fake.manifests["team/pushed", "2"][1] == box.blobs[box.digest]
    done = await run(node, "push", "--plain-http", f"{reference}@{box.digest}")
    assert done.stdout.startswith(f"pushed {reference}@{box.digest}: ")
    before = len(fake.seen)
    for words in (["--source", reference, f"{to}@{another.digest}"], [f"{reference}@{another.digest}"]):
        done = await run(node, "push", "--plain-http", *words, ok=None)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"splitd: {words[-1]}: the image {reference} has another digest, {box.digest}")
    assert len(fake.seen) == before


async def test_a_push_to_a_registry_without_head(node: Node, fake: FakeRegistry) -> None:
    """The registry is asked by GET for existing blobs, and no blob is sent twice."""
    fake.head = False
    reference = fake.add(made(1), "team/headless:1")
    await run(node, "pull", "--plain-http", reference)
    to = f"{fake.host}/team/headless-too:1"
    for _ in range(2):
        done = await run(node, "push", "--plain-http", "--source", reference, to)
        # the first time it is mounted from where it was pulled
        assert done.stdout.rstrip().endswith(", 1 layer, there already")
    assert len(fake.asked("PUT", "/manifests/")) == 1


async def test_failures_are_one_line_that_names_the_host_and_the_cause(node: Node, fake: FakeRegistry) -> None:
    """The exit code is 1, and standard output is empty; as JSON the outcome has the error too. It names the trace, as the
    log does. Before it there may be lines about a host that is asked several times.
    """
    reference = fake.add(made(1), "team/box:1")
    for wrong, said in (
        (f"{fake.host}/team/box:none", f"{fake.host}: HEAD /v2/team/box/manifests/none: 404"),
        (f"{fake.host}/nobody/box:1", f"{fake.host}: HEAD /v2/nobody/box"),
        ("127.0.0.1:1/box:1", "127.0.0.1:1: no connection: Connection refused"),
    ):
        done = await run(node, "pull", "--plain-http", wrong, ok=None)
        assert (done.returncode, done.stdout) == (1, "")
        *waited, line = done.stderr.splitlines()
        assert all(WAITS.match(each) for each in waited), done.stderr
        assert said in line
        assert wrong in line
        assert re.search(r" \(trace [0-9a-f]{32}\)$", line)
    fake.inject("blob", status(403), times=9)
    done = await run(node, "pull", "--plain-http", "--json", reference, ok=None)
    assert done.returncode == 1
    last = objects(done.stdout)[-1]
    assert last["outcome"] == "failed"
    assert "403" in last["error"]
    assert done.stderr == f"splitd: {last['error']} (trace {last['trace']})\n"
    assert f"; trace {last['trace']})" in (node.root / "log/images.log").read_text()


async def test_an_image_without_the_platform_is_a_failure_that_names_those_it_has(
    node: Node, fake: FakeRegistry
) -> None:
    """Those platforms can be pulled."""
    reference = fake.add(
        index(
            image([tar_of([("a", {"data": os.urandom(100)})])], architecture="mips64"),
            image([tar_of([("b", {"data": os.urandom(100)})])], architecture="s390x"),
        ),
        "team/foreign:1",
    )
    done = await run(node, "pull", "--plain-http", reference, "--platform", "linux/riscv64", ok=None)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"splitd: {reference} has nothing for linux/riscv64: its platforms are linux/mips64, linux/s390x\n"
    )
    await run(node, "pull", "--plain-http", reference, "--platform", "linux/s390x", "--no-unpack")
    (found,) = [
        each for each in json.loads((await run(node, "images", "list", "--json")).stdout) if each["name"] == reference
    ]
    assert (found["platforms"], found["unpacked"]) == (["linux/s390x"], [])
    everything = objects((await run(node, "pull", "--plain-http", reference, "--all-platforms", "--json")).stdout)[-1]
    assert (everything["layers"], everything["existing"]) == (2, 1)


async def test_a_manifest_for_another_platform_is_stored_and_said_to_be(node: Node, fake: FakeRegistry) -> None:
    """It is unpacked too, as in containerd: without an index there is no choice. A line says that it will not run
    here.
    """
    box = image([tar_of([("a", {"data": os.urandom(100)})])], architecture="s390x")
    reference, here = fake.add(box, "team/other:1"), platforms.default()
    done = await run(node, "pull", "--plain-http", reference)
    assert done.stdout.startswith(f"pulled {reference}@{box.digest}: ")
    assert done.stderr == f"splitd: {reference}: for linux/s390x, not for {here}\n"
    (found,) = [
        each for each in json.loads((await run(node, "images", "list", "--json")).stdout) if each["name"] == reference
    ]
    assert found["platforms"] == ["linux/s390x"]
    assert objects((await run(node, "pull", "--plain-http", reference, "--json")).stdout)[-1]["otherPlatforms"] == [
        "linux/s390x"
    ]
    for words in (("--platform", "linux/s390x"), ("--all-platforms",)):
        done = await run(node, "pull", "--plain-http", reference, *words)
        assert done.stderr == ""


async def test_an_index_without_manifests_is_no_image(node: Node, fake: FakeRegistry) -> None:
    """Nor is an index that has only such indexes. Nothing of it is stored."""
    for empty in (index(), index(index(), index())):
        reference = fake.add(empty, "team/empty:1")
        done = await run(node, "pull", "--plain-http", reference, ok=None)
        assert done.returncode == 1
        assert done.stderr.startswith(f"splitd: {reference}: index {empty.digest} has no manifests (trace ")
        assert reference not in node.out("images", "ls", "-q").split()


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_a_password_is_asked_for_and_not_shown(node: Node, scheme: str) -> None:
    """It is asked for on the terminal before anything is drawn; a wrong one is refused by the registry."""
    async with FakeRegistry(auth=Auth(scheme, "me", "sEcr3t")) as fake:
        reference = fake.add(made(1), "team/mine:1")

        def see(typed: str) -> Callable[[Terminal], tuple[int, bytes]]:
            def seen(shown: Terminal) -> tuple[int, bytes]:
                shown.until(
                    lambda lines: any(f"Password of me for {reference}: " in line + " " for line in lines),
                    "nothing is asked",
                )
                shown.type(f"{typed}\n")
                return shown.wait(), shown.output

            return seen

        code, output = await on_terminal(
            node, ["pull", "--plain-http", "--user", "me", reference], see("wrong"), columns=200
        )
        assert code == 1, output
        assert b"401" in output
        code, output = await on_terminal(
            node, ["pull", "--plain-http", "--user", "me", reference], see("sEcr3t"), columns=200
        )
        assert code == 0, output
        assert b"sEcr3t" not in output
        await run(node, "pull", "--plain-http", "--user", "me:sEcr3t", reference)
        refused = await run(node, "pull", "--plain-http", reference.replace("mine:1", "mine:2"), ok=None)
        assert "401" in refused.stderr


async def test_hosts_dir_says_where_a_registry_is(node: Node, fake: FakeRegistry, tmp_path: Path) -> None:
    """It is a directory of hosts.toml files; its path is relative to the current directory."""
    fake.add(made(1), "team/box:1")
    (tmp_path / "registry.example").mkdir()
    (tmp_path / "registry.example" / "hosts.toml").write_text(f'server = "{fake.url}"\n')
    await run(
        node, "pull", "registry.example/team/box:1", "--hosts-dir", os.path.relpath(tmp_path, Path(__file__).parents[2])
    )
    assert "registry.example/team/box:1" in node.out("images", "ls", "-q")


def test_another_snapshotter_and_another_namespace(node: Node, registry: Registry) -> None:
    """Both are used as requested."""
    node.splitd("pull", "--plain-http", f"{registry.host}/box:1", "--snapshotter", "native", "-n", "elsewhere")
    (found,) = json.loads(node.splitd("images", "list", "--json", "--namespace", "elsewhere").stdout)
    assert found["unpacked"] == ["native"]
    node.splitd("images", "-n", "elsewhere", "remove", "--sync", f"{registry.host}/box:1")


# ---------------------------------------------------------------------------------------------- push


async def test_a_push_sends_only_missing_blobs(node: Node, registry: Registry, fake: FakeRegistry) -> None:
    """The registry is a real one; a second push sends nothing. The source may have another name."""
    box = made(2)
    reference = fake.add(box, "team/source:1")
    await run(node, "pull", "--plain-http", reference)
    target = f"{registry.host}/pushed:1"
    *changes, outcome = objects(
        (await run(node, "push", "--plain-http", target, "--source", reference, "--json")).stdout
    )
    assert {change["stage"] for change in changes if change["digest"] == box.layers[0]} <= {
        "waiting",
        "uploading",
        "done",
    }
    assert (outcome["digest"], outcome["layers"], outcome["existing"], outcome["bytes"]) == (
        box.digest,
        2,
        0,
        sum(map(len, box.blobs.values())),
    )
    for digest in (config_of(box), *box.layers):
        code, _, body = registry.http("GET", f"/v2/pushed/blobs/{digest}")
        assert (code, body) == (200, box.blobs[digest])
    assert objects((await run(node, "pull", "--plain-http", target, "--json")).stdout)[-1]["digest"] == box.digest

    def see(shown: Terminal) -> list[str]:
        assert shown.wait() == 0
        return shown.lines

    lines = await on_terminal(node, ["push", "--plain-http", target, "--source", reference], see, columns=200)
    assert [line.split()[:2] for line in lines[:2]] == [[layer, "exists"] for layer in layers_of(box)]
    assert lines[2].endswith(", 2 layers, all of them there already")


async def test_a_push_that_fails_says_why(node: Node) -> None:
    """The image does not exist here, or the registry does not exist."""
    done = await run(node, "push", "127.0.0.1:1/none:1", ok=None)
    assert (done.returncode, done.stderr) == (1, "splitd: image 127.0.0.1:1/none:1: not found\n")


# ---------------------------------------------------------------------------------------------- images


@pytest.fixture
def mine(node: Node, registry: Registry) -> Iterator[str]:
    """The name of a busybox image in its own namespace."""
    name = f"{registry.host}/box:1"
    node.splitd("pull", "--plain-http", "--quiet", "-n", "mine", name)
    yield name
    node.splitd("images", "-n", "mine", "remove", "--sync", name, ok=None)


def test_images_are_listed_and_looked_into(node: Node, mine: str) -> None:
    """The list for persons, the list for programs, and all data of one image."""
    header, row = node.splitd("images", "-n", "mine").stdout.splitlines()
    # as wide as the age
    assert node.splitd("images", "-n", "mine", "ls").stdout.splitlines()[0].split() == header.split()
    assert header.split() == ["NAME", "DIGEST", "PLATFORMS", "SIZE", "CREATED", "UNPACKED"]
    assert row.split()[0] == mine
    assert row.split()[-1] == "overlayfs"
    (found,) = json.loads(node.splitd("images", "-n", "mine", "--json").stdout)
    assert found["name"] == mine
    assert found["digest"].startswith(f"sha256:{row.split()[1]}")
    detail = json.loads(node.splitd("images", "inspect", mine, "-n", "mine").stdout)
    assert found.items() <= detail.items()
    (manifest,) = detail["manifests"]
    assert manifest["usable"]
    assert all(layer["present"] for layer in manifest["layers"])
    assert found["size"] > sum(layer["size"] for layer in manifest["layers"]) > 100_000


async def test_names_of_strangers_do_nothing_to_a_terminal(node: Node) -> None:
    """An image may have any name: it takes one line of the list, on a terminal and elsewhere, and JSON has it
    unchanged.
    """
    name = "evil\x1b]0;title\x07\x1b[2J\nhost/box:1  000000000000\x9b1m\u202egpj"
    record = images_pb2.Image(name=name)
    record.target.digest, record.target.media_type, record.target.size = "sha256:" + "a" * 64, "application/\x1b[2J", 1
    async with Channel(node.socket) as channel:
        images = channel.client(images_stubs.IMAGES)
        await images.Create(
            images_pb2.CreateImageRequest(image=record), headers={"containerd-namespace": "evil"}, timeout=5
        )
        listed = await run(node, "images", "-n", "evil", ok=None)
        as_json = await run(node, "images", "-n", "evil", "--json")
        missing = await run(node, "pull", "127.0.0.1:1/a\x1b[2J", ok=False)
        removed = await run(node, "images", "remove", "-n", "evil", name)
    shown = r"evil\x1b]0;title\x07\x1b[2J\nhost/box:1  000000000000\x9b1m\u202egpj"
    assert listed.stdout.count("\n") == 2
    assert shown in listed.stdout
    assert removed.stdout == f"removed {shown}\n"
    assert [image["name"] for image in json.loads(as_json.stdout)] == [name]
    for text in (listed.stdout, listed.stderr, as_json.stdout, missing.stderr, removed.stdout):
        assert text.replace("\n", "").isprintable(), text


def test_images_are_tagged_and_removed(node: Node, mine: str) -> None:
    """Short names are Docker's. Of several names to remove, existing ones are removed and the others reported."""
    assert (
        node.splitd("images", "-n", "mine", "tag", mine, "tagged").stdout
        == f"{mine} is docker.io/library/tagged:latest too\n"
    )
    done = node.splitd("images", "-n", "mine", "rm", "--sync", "none:1", "tagged", "none:2", ok=None)
    assert done.returncode == 1
    assert done.stdout == "removed docker.io/library/tagged:latest\n"
    assert (
        done.stderr
        == "splitd: image docker.io/library/none:1: not found\nsplitd: image docker.io/library/none:2: not found\n"
    )
    assert node.out("images", "ls", "-q", namespace="mine").split() == [mine]


def test_an_archive_is_exported_and_imported(node: Node, mine: str, tmp_path: Path) -> None:
    """Through files and through pipes; ctr reads archives of splitd, and splitd those of ctr. The imported image is
    unpacked and runs.
    """
    file = tmp_path / "box.tar"
    (line,) = node.splitd("images", "-n", "mine", "export", str(file), mine).stdout.splitlines()
    assert line.startswith(f"exported {mine} to {file}: ")
    assert os.listdir(tmp_path) == ["box.tar"]
    node.ctr("images", "import", file, namespace="by-ctr")
    splitd_ = [sys.executable, "-m", "deploy", "images", "--state", str(node.state)]
    piped = subprocess.run(
        [*splitd_, "-n", "mine", "export", "-", mine],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        timeout=90,
    )
    assert piped.stdout == file.read_bytes()
    done = subprocess.run(
        [*splitd_, "-n", "imported", "import", "-"],
        cwd=Path(__file__).parents[2],
        check=True,
        input=piped.stdout,
        capture_output=True,
        timeout=90,
    )
    first, last = done.stdout.decode().splitlines()
    assert first.startswith(f"imported {mine}@sha256:")
    assert last.startswith("read standard input: ")
    assert node.out("run", "--rm", mine, "hello", "echo", "hello", namespace="imported") == "hello\n"
    *changes, outcome = objects(node.splitd("images", "-n", "imported", "import", str(file), "--json").stdout)
    assert changes[-1]["bytes"] == changes[-1]["total"] == file.stat().st_size
    assert (outcome["outcome"], [found["name"] for found in outcome["images"]]) == ("done", [mine])
    for namespace in ("by-ctr", "imported"):
        node.splitd("images", "-n", namespace, "remove", "--sync", mine)


def test_an_import_leaves_out_images_for_other_platforms(node: Node, tmp_path: Path) -> None:
    """The output says so; if nothing is left, the import fails. With an option for all platforms the whole archive is
    imported.
    """

    def archive(name: str, *entries: dict[str, Any]) -> str:
        blobs = {
            f"blobs/sha256/{digest[7:]}": {"data": data}
            for found in (here, there)
            for digest, data in found.blobs.items()
        }
        document = {"schemaVersion": 2, "manifests": entries}
        (tmp_path / name).write_bytes(
            tar_of(
                [
                    ("oci-layout", {"data": b'{"imageLayoutVersion":"1.0.0"}'}),
                    ("index.json", {"data": json.dumps(document).encode()}),
                    *blobs.items(),
                ]
            )
        )
        return str(tmp_path / name)

    def named(descriptor: dict[str, Any], name: str) -> dict[str, Any]:
        return {**descriptor, "annotations": {"io.containerd.image.name": name}}

    here, there = (image([tar_of([("a", {"data": os.urandom(100)})])], architecture=each) for each in ("", "s390x"))
    # as by crane: only the config knows
    unsaid = {key: value for key, value in there.descriptor.items() if key != "platform"}
    both = archive(
        "both.tar",
        named(here.descriptor, "here.io/a:1"),
        named(there.descriptor, "there.io/a:1"),
        named(unsaid, "unsaid.io/a:1"),
    )
    done = node.splitd("images", "-n", "others", "import", both)
    assert done.stdout.splitlines()[0] == f"imported here.io/a:1@{here.digest}"
    assert done.stderr.splitlines() == [
        f"splitd: {name}: not imported: for linux/s390x; --all-platforms takes it"
        for name in ("there.io/a:1", "unsaid.io/a:1")
    ]
    assert node.out("images", "ls", "-q", namespace="others").split() == ["here.io/a:1"]
    *_, outcome = objects(node.splitd("images", "-n", "others", "import", "--json", both).stdout)
    assert [(each["name"], each["platforms"]) for each in outcome["notImported"]] == [
        ("there.io/a:1", "linux/s390x"),
        ("unsaid.io/a:1", "linux/s390x"),
    ]
    for entry in (there.descriptor, unsaid):
        done = node.splitd(
            "images", "-n", "others", "import", archive("only.tar", named(entry, "there.io/a:1")), ok=None
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "splitd: there.io/a:1: not imported: for linux/s390x; --all-platforms takes it\n"
    node.splitd("images", "-n", "others", "import", "--all-platforms", both)
    listed = {
        found["name"]: found["platforms"]
        for found in json.loads(node.splitd("images", "-n", "others", "list", "--json").stdout)
    }
    assert listed["there.io/a:1"] == listed["unsaid.io/a:1"] == ["linux/s390x"]
    done = node.splitd("images", "-n", "unnamed", "import", archive("unnamed.tar", here.descriptor))
    assert re.fullmatch(rf"imported import-[0-9-]+@{here.digest}", done.stdout.splitlines()[0])
    assert len(node.out("images", "ls", "-q", namespace="unnamed").split()) == 1
    for namespace in ("others", "unnamed"):
        node.splitd("images", "-n", namespace, "remove", *node.out("images", "ls", "-q", namespace=namespace).split())


def test_an_error_in_an_archive_names_the_file(node: Node, mine: str, tmp_path: Path) -> None:
    """Nothing is left of a failed export."""
    (tmp_path / "bad.tar").write_bytes(os.urandom(2000))
    for words, said in (
        (["import", str(tmp_path / "none.tar")], f"{tmp_path}/none.tar: No such file or directory"),
        (["import", str(tmp_path / "bad.tar")], f"{tmp_path}/bad.tar: archive/tar: invalid tar header"),
        (["export", str(tmp_path / "out.tar"), "none"], "image docker.io/library/none:latest: not found"),
        (["export", "/dev/full", mine], "/dev/full: No space left on device"),
    ):
        done = node.splitd("images", "-n", "mine", *words, ok=None)
        assert done.returncode == 1, words
        *waited, line = done.stderr.splitlines()
        assert not waited, done.stderr
        assert said in line
    assert os.listdir(tmp_path) == ["bad.tar"]


async def test_an_import_from_a_pipe_that_brings_nothing_can_be_given_up(node: Node) -> None:
    """Ctrl-C ends it although the pipe stays open."""
    reader, writer = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "deploy",
            "images",
            "--state",
            node.state,
            "-n",
            "piped",
            "import",
            "-",
            cwd=Path(__file__).parents[2],
            stdin=reader,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.write(writer, bytes(512))
        async with Channel(node.socket) as channel:
            client = Client(channel, "piped")

            async def begun() -> bool:
                return bool(await client.leases())

            await eventually_async(begun, "no import begins", 60)
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(20):
                _, err = await process.communicate()
            assert (process.returncode, err) == (130, b"splitd: cancelled\n")

            async def over() -> bool:
                return not await client.leases()

            await eventually_async(over, "the node goes on with a cancelled import", 60)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_gateway_that_comes_back_is_waited_for(node: Node) -> None:
    """Between its death and its return splitd does not say that no node is up."""
    node.kill("gateway")
    assert splitd("images", "--state", node.state).stdout.startswith("NAME")
