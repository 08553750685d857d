"""The store stays within its size, however many pulls there are. ``make traces-bound`` does it with 10,000."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit import rpc
from services.traces import convert
from services.traces.config import LEAST
from services.traces.remote import RemoteStore
from services.traces.store import Kind, Piece, Query, Span, Value
from tests.suites.traces import NOW, ROOT, SECOND
from tests.support import ServiceProcess, short_directory

PULLS = int(os.environ.get("TRACES_PULLS", "350"))
SPANS = 200
SIZE = int(os.environ.get("TRACES_SIZE", LEAST))
PROCESSES = ("gateway", "images", "snapshots", "content", "metadata")


def pull(rng: random.Random, number: int) -> Iterator[list[Piece]]:
    """Return what the processes send about one pull, each in its turn."""
    trace, root = rng.randbytes(16).hex(), rng.randbytes(8).hex()
    begun = NOW + number * SECOND
    end = begun + 2 * SECOND
    yield _pieces([Span(trace, root, "", "Transfer", "splitd-gateway", begun, end, Kind.SERVER, 0, "", ROOT)])
    for process in PROCESSES:
        spans = []
        for _ in range(SPANS // len(PROCESSES)):
            start = begun + rng.randrange(SECOND)
            attributes: dict[str, Value] = {
                "oci.layer.digest": f"sha256:{rng.randbytes(32).hex()}",
                "server.address": "registry-1.docker.io",
                "http.response.status_code": 200,
                "splitd.bytes": rng.randrange(1 << 24),
                "splitd.detail": rng.randbytes(64).hex(),
            }
            own = rng.randbytes(8).hex()
            spans.append(
                Span(trace, own, root, "registry.fetch", f"splitd-{process}", start, end, 1, 0, "", attributes)
            )
        yield _pieces(spans)


def _pieces(spans: list[Span]) -> list[Piece]:
    return [*convert.pieces(convert.spans_to_pb(spans).resource_spans)]


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def used(pid: int) -> float:
    """Return the seconds that a process has spent on a processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.timeout(580)
async def test_the_store_stays_within_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    """Also while spans come; the newest pulls are there as a whole, and nothing is dropped."""
    rng = random.Random(1)
    largest = 0
    with short_directory() as directory:
        (directory / "c.toml").write_text(f"[traces]\nsize = {SIZE}\n")
        with ServiceProcess(
            "services.traces", directory / "r", directory / "s", config=directory / "c.toml", copied=False
        ) as running:
            async with rpc.Channel(running.sockets[0], "traces") as channel:
                store, before = RemoteStore(channel), used(running.pid)
                begun = time.monotonic()
                for number in range(PULLS):
                    for pieces in pull(rng, number):
                        await store.take(pieces)
                    largest = max(largest, size(directory / "r/traces"))
                    if number % 20 == 0:  # no faster than it can be written
                        await store.figures()
                took, spent = time.monotonic() - begun, used(running.pid) - before
                figures = await store.figures()
                there = await store.traces(Query(limit=PULLS))
                pss = next(
                    int(line.split()[1])
                    for line in Path(f"/proc/{running.pid}/smaps_rollup").read_text().splitlines()
                    if line.startswith("Pss:")
                )
    with capsys.disabled():
        print(
            f"\n{PULLS} pulls of {SPANS + 1} spans in {took:.0f} s: {figures.traces} kept in {figures.bytes >> 20} of "
            f"{SIZE >> 20} MiB, {1000 * spent / PULLS:.2f} ms of processor a pull, {pss >> 10} MiB of memory"
        )
    assert largest <= SIZE
    assert figures.dropped == 0
    assert len(there) == figures.traces
    assert figures.traces * (SPANS + 1) == figures.spans
    assert [each.start for each in there] == [NOW + number * SECOND for number in range(PULLS - 1, -1, -1)][
        : len(there)
    ]
    assert figures.traces >= min(PULLS, (SIZE - (10 << 20)) // 60_000)
