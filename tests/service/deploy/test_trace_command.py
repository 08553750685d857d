"""``splitd trace`` beside a real traces process: import, and look at it; what is in flight; a service that is away."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import health
from deploy.place import Place
from deploy.verbs import status
from services.kit import rpc
from services.traces import otlp_json
from services.traces.remote import RemoteStore
from services.traces.store import Span
from tests.support import ServiceProcess, short_directory, splitd
from tests.terminal import Terminal, terminal
from tests.unit.deploy.test_trace_verb import pull
from tests.unit.traces.spans import OTHER, Spans


@pytest.fixture(scope="module")
def process() -> Iterator[ServiceProcess]:
    with short_directory() as directory, ServiceProcess("services.traces", directory / "r", directory / "s") as running:
        yield running


def command(process: ServiceProcess, *words: str | Path) -> subprocess.CompletedProcess[str]:
    state = process.sockets[0].parent
    return splitd("trace", *words, "--root", state.parent / "r", "--state", state, ok=None)


def test_what_is_imported_is_there_and_comes_out_as_it_was(process: ServiceProcess, tmp_path: Path) -> None:
    """The verdict is the first paragraph; the export has the same spans."""
    spans = pull(7, 12.0, host="slow.test").spans
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(otlp_json.spans_to_json(spans)))
    done = command(process, "import", file)
    assert (done.stdout, done.stderr) == (f"imported trace {'07' * 6}: 3 spans of {file}\n", "")
    shown = command(process, "show").stdout
    assert shown.startswith("12.0 of 12.0 s: waiting for bytes from slow.test at 83 KB/s")
    out = tmp_path / "ours.json"
    command(process, "export", "0707", "-o", out)
    key = lambda span: span.id
    again = otlp_json.spans_from_json(json.loads(out.read_text())).spans
    assert sorted(again, key=key) == sorted(spans, key=key)
    (listed,) = json.loads(command(process, "ls", "--slow", "--image", "slow.test", "--json").stdout)
    assert (listed["trace"], listed["spans"], listed["seconds"]) == ("07" * 16, 3, 12.0)
    missing = command(process, "show", "fff")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "splitd: trace fff: not found (splitd trace ls prints those that are kept)\n"


@pytest.mark.parametrize(("columns", "environment"), [(80, {}), (132, {"NO_COLOR": "1"})])
def test_on_a_terminal_it_fits_and_has_colours(
    columns: int, environment: dict[str, str], process: ServiceProcess, tmp_path: Path
) -> None:
    """No line is wrapped; NO_COLOR is honoured."""
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(otlp_json.spans_to_json(pull(8, 3.0, host="a-host-with-a-long-name.test").spans)))
    words: list[str | Path] = [sys.executable, "-m", "deploy", "trace", "show", "--file", file, "--state", "/nowhere"]
    with terminal(words, columns=columns, env=environment) as shown:
        assert shown.wait() == 0
        lines = shown.lines
    printed = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", shown.output.decode()).splitlines() if line.strip()]
    assert lines == [line.rstrip() for line in printed]
    assert lines[-1].startswith("*     registry.transfer")
    assert (b"\x1b[" in shown.output) is not bool(environment)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("enabled = false", "tracing is off ([tracing] enabled = false in {}): set it to true, then pull again"),
        (
            'endpoint = "unix:/run/c.sock"',
            "traces go to unix:/run/c.sock, not to the node's own store ([tracing] endpoint in",
        ),
    ],
)
def test_a_node_that_keeps_no_traces_says_why(table: str, said: str, process: ServiceProcess, tmp_path: Path) -> None:
    """The line names the setting and its file; what was kept before is shown all the same."""
    config = tmp_path / "c.toml"
    config.write_text(f"[tracing]\n{table}\n")
    wanted = said.format(config)
    listed = command(process, "ls", "--image", "none-such", "--config", config)
    assert listed.stderr.startswith(f"splitd: {wanted}")
    missing = command(process, "show", "fff", "--config", config)
    assert missing.stderr.splitlines()[1].startswith(f"splitd: {wanted}")
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(otlp_json.spans_to_json(pull(9).spans)))
    command(process, "import", kept)
    newest = command(process, "show", "--config", config)
    assert newest.stderr.startswith(f"splitd: {wanted}")
    assert newest.stdout
    in_flight = command(process, "top", "--json", "--config", config)
    assert in_flight.stderr.startswith(f"splitd: {wanted}")


def test_status_says_that_the_file_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    """The service is healthy then, and nothing else would tell that all spans are lost."""
    with short_directory() as directory:
        file = directory / "r/traces/traces.db"
        file.mkdir(parents=True)
        with ServiceProcess("services.traces", directory / "r", directory / "s"):
            here = Place(directory / "r", directory / "s", None)
            status.print_table(here, [], [], health.traces(here))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"traces: {file} cannot be used: unable to open database file; spans are lost"


def open_spans(label: str, seconds: float) -> list[Span]:
    """A pull that began so long ago and waits for a lock that another one holds."""
    now = time.time_ns()
    holder, waiter = Spans(), Spans(OTHER)
    held = holder.add("registry.fetch", 0, 0, splitd__operation="pull", container__image__name=f"holder:{label}")
    waiter.add("wait.lock", 0, 0, link=f"{holder.id}-{held}", container__image__name=f"waiter:{label}")
    fields = [{name: getattr(span, name) for name in Span.__slots__} for span in (*holder.spans, *waiter.spans)]
    return [Span(**{**each, "start": now - int(seconds * 1e9), "end": 0}) for each in fields]


async def report(process: ServiceProcess, spans: list[Span]) -> None:
    async with rpc.Channel(process.sockets[0], "traces") as channel:
        await RemoteStore(channel).report("splitd-images", spans, lifetime=60.0)


async def test_an_operation_under_way_is_said_to_be_so(process: ServiceProcess, tmp_path: Path) -> None:
    """What is known of it is shown: what has ended, and what is open; also if nothing has ended yet."""
    (span,) = open_spans("half:1", 5.0)[:1]
    file = tmp_path / "half.json"
    ended = {name: getattr(span, name) for name in Span.__slots__}
    ended |= {"id": "e" * 16, "parent": span.id, "name": "registry.resolve", "end": span.start + 10**9}
    file.write_text(json.dumps(otlp_json.spans_to_json([Span(**ended)])))
    await report(process, [span])
    for seen in (["half:1"], ["half:1", "registry.resolve"]):
        shown = await asyncio.to_thread(command, process, "show", span.trace[:8])
        assert "the operation is still under way" in shown.stderr
        assert all(name in shown.stdout for name in seen), shown.stdout
        newest = await asyncio.to_thread(command, process, "show")
        assert f"trace {span.trace[:12]}" in newest.stdout
        await asyncio.to_thread(command, process, "import", file)
    await report(process, [])


async def test_top_is_printed_once_where_there_is_no_terminal(process: ServiceProcess) -> None:
    """People and programs get the operations with their stages, and who holds what is waited for."""
    await report(process, open_spans("once", 5.0))
    lines = (await asyncio.to_thread(command, process, "top")).stdout.splitlines()
    assert any("wait.lock" in line and "held by registry.fetch of pull holder:once" in line for line in lines)
    found = json.loads((await asyncio.to_thread(command, process, "top", "--json")).stdout)
    assert {each["about"] for each in found["operations"]} == {"holder:once", "waiter:once"}
    assert all(each["seconds"] >= 5.0 for each in found["operations"])


async def test_top_goes_on_where_there_is_a_terminal_until_ctrl_c(process: ServiceProcess) -> None:
    """It shows what is reported meanwhile, leaves the terminal clean, and ends well."""
    loop = asyncio.get_running_loop()
    state = process.sockets[0].parent

    def see(shown: Terminal) -> int:
        for label in ("first", "second"):
            asyncio.run_coroutine_threadsafe(report(process, open_spans(label, 5.0)), loop).result(30)
            lines = shown.until(lambda lines: any(f"holder:{label}" in line for line in lines), "not shown")  # noqa: B023
            assert len(lines) == 4, lines
        shown.type("\x03")
        code = shown.wait()
        assert not shown.screen.cursor.hidden
        return code

    def look() -> int:
        words: list[str | Path] = [
            sys.executable,
            "-m",
            "deploy",
            "trace",
            "top",
            "--state",
            state,
            "--root",
            state.parent / "r",
        ]
        with terminal(words, columns=120) as shown:
            return see(shown)

    await report(process, [])
    assert await asyncio.to_thread(look) == 0
    await report(process, [])


def test_a_service_that_is_away_is_named() -> None:
    """A node that is not up is said to be so; one that is up says what to do."""
    with short_directory() as directory:
        done = splitd("trace", "ls", "--root", directory / "r", "--state", directory / "s", ok=None)
        assert done.returncode == 3
        assert "no node is up at" in done.stderr
