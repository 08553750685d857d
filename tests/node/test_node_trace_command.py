"""``splitd trace`` and the sentence of ``splitd pull`` on a whole node."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from deploy.samples import busybox_image
from services.traces import otlp_json
from tests.fake_registry import FakeRegistry, slow
from tests.node.test_node_pulls import made
from tests.node.test_node_splitd_transfers import run
from tests.support import Node, eventually_async

pytestmark = [pytest.mark.node, pytest.mark.root]


async def listed(node: Node, *words: str) -> list[dict]:
    return json.loads((await run(node, "trace", "ls", "--json", *words)).stdout)


async def test_a_pull_says_what_it_waited_for_and_show_says_it_again(
    node: Node, fake: FakeRegistry, tmp_path: Path
) -> None:
    """With -v the command prints the verdict. The newest pull is what show shows, with its waterfall; an export can be
    looked at without the node.
    """
    reference = fake.add(made(2, 500), "team/traced:1")
    fake.inject("blob", slow(300_000), times=9, method="GET")
    pulled = await run(node, "pull", "-v", "--plain-http", reference)
    first, sentence, *_, hint = pulled.stdout.splitlines()
    assert first.startswith(f"pulled {reference}@")
    assert re.match(r"[0-9.]+ of [0-9.]+ s: .*\.$", sentence)
    shown = (await run(node, "trace", "show")).stdout
    assert shown.replace("\n", " ").startswith(sentence)
    assert f"trace show {shown.partition('trace ')[2][:12]} " in hint
    assert any(line.startswith("* ") for line in shown.splitlines())
    (newest, *_) = await listed(node, "--operation", "pull", "--image", "team/traced")
    assert (newest["image"], newest["outcome"], newest["errors"]) == (reference, "ok", 0)
    file = tmp_path / "pull.json"
    await run(node, "trace", "export", newest["trace"], "-o", str(file))
    spans = otlp_json.spans_from_json(json.loads(file.read_text())).spans
    assert len(spans) == newest["spans"]
    assert {"splitd-gateway", "splitd-images", "splitd-snapshots"} <= {span.service for span in spans}
    assert (await run(node, "trace", "show", "--file", str(file))).stdout == shown


async def test_what_is_in_flight_is_seen_while_it_runs(node: Node, fake: FakeRegistry) -> None:
    """``top`` asks the processes what they have open now; ``show`` has a pull that is under way."""
    reference = fake.add(made(1, 500), "team/flying:1")
    fake.inject("blob", slow(100_000), times=9, method="GET")
    pulling = asyncio.ensure_future(run(node, "pull", "--plain-http", reference))

    async def flying() -> list[dict]:
        found = json.loads((await run(node, "trace", "top", "--json")).stdout)["operations"]
        return [each for each in found if each["about"] == reference]

    (pull,) = await eventually_async(flying, "the pull is not seen")
    assert pull["operation"] == "pull"
    assert "splitd-images" in {stage["service"] for stage in pull["stages"]}
    shown = await run(node, "trace", "show", pull["trace"])
    assert "the operation is still under way" in shown.stderr
    assert pull["trace"][:12] in shown.stdout
    await pulling

    async def over() -> bool:
        return await flying() == []

    await eventually_async(over, "the pull is shown though it has ended")


async def test_a_failed_pull_says_what_it_waited_for_too(node: Node, fake: FakeRegistry) -> None:
    """After the error, on standard error; the error itself is said once."""
    failed = await run(node, "pull", "-v", "--plain-http", f"{fake.host}/team/none:1", ok=False)
    error, *more = failed.stderr.splitlines()
    assert "team/none:1" in error
    (newest, *_) = await listed(node, "--failed", "--image", "team/none")
    assert newest["trace"][:12] in failed.stderr
    (sentence,) = [line for line in more if "failed after" in line]
    assert re.match(r"splitd: failed after [0-9.]+ s; [0-9.]+ of [0-9.]+ s: ", sentence)
    shown = (await run(node, "trace", "show", newest["trace"])).stdout.replace("\n", " ")
    assert re.match(r"failed after [0-9.]+ s: .*404 Not Found", shown)


async def test_a_run_is_one_operation(node: Node, fake: FakeRegistry) -> None:
    """Of ctr, which sends no trace context: the list names the container, show has the processes that took part."""
    reference = fake.add(busybox_image(), "team/run:1")
    await run(node, "pull", "--plain-http", reference)
    await asyncio.to_thread(node.ctr, "run", "--rm", reference, "traced", "true")

    async def found() -> dict:
        runs = await listed(node, "--operation", "run")
        assert runs
        return runs[0]

    newest = await eventually_async(found, "no run is listed")
    assert newest["attributes"]["container.id"] == "traced"
    shown = (await run(node, "trace", "show", newest["trace"])).stdout
    assert "container traced" in shown
    assert {"gateway", "metadata", "snapshots", "tasks"} <= set(re.findall("[a-z]+", shown.partition(" spans of ")[2]))


async def test_without_the_traces_service_a_pull_goes_on_and_says_why_it_says_nothing(
    node: Node, fake: FakeRegistry
) -> None:
    """Other commands of trace name the service, and what to do."""
    reference = fake.add(made(1), "team/untraced:1")
    await run(node, "down", "traces")
    try:
        pulled = await run(node, "pull", "-v", "--plain-http", reference)
        said, why = pulled.stdout.splitlines()
        assert said.startswith(f"pulled {reference}@")
        assert why.startswith(f"where the time went is not known: the traces service at {node.state}/traces.sock")
        listed = await run(node, "trace", "ls", ok=False)
        assert "does not answer" in listed.stderr
        assert "status" in listed.stderr
        assert len(listed.stderr.splitlines()) == 1
    finally:
        await run(node, "up")


async def test_a_pull_whose_gateway_is_killed_is_found(node: Node, fake: FakeRegistry) -> None:
    """Its root is lost with the gateway. What the other processes recorded says what it was, and there is a verdict."""
    reference = fake.add(made(1, 500), "team/killed:1")
    fake.inject("blob", slow(100_000), times=9, method="GET")
    pulling = asyncio.ensure_future(run(node, "pull", "--plain-http", reference, ok=False))

    async def fetching() -> int:
        return fake.answering

    await eventually_async(fetching, "nothing is fetched")
    node.kill("gateway")
    await pulling
    await asyncio.to_thread(node.wait_healthy)

    async def found() -> dict:
        pulls = await listed(node, "--operation", "pull", "--image", "team/killed", "--namespace", "default")
        assert pulls
        assert pulls[0]["outcome"] != "under way"
        return pulls[0]

    newest = await eventually_async(found, "the pull is not listed")
    assert (newest["image"], newest["name"]) == (reference, "images.pull")
    shown = (await run(node, "trace", "show")).stdout.replace("\n", " ")
    assert re.search(r"[0-9.]+ of [0-9.]+ s: ", shown)
    assert "the root of this trace was not recorded" in shown
    assert newest["trace"][:12] in shown
