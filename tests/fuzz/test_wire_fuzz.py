"""A fuzzer for services.wire: frames that are nearly valid, owners with any behaviour, and invariants for both
(wire_peers.py).

``make fuzz`` runs it for ten minutes with a random seed; here it runs for twenty seconds, with the seed that it prints.
A failing script is shrunk, and printed for ``corpus``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from tests.fuzz import wire_peers
from tests.fuzz.wire_peers import Step
from tests.unit.wire.test_wire_server import SAY, TALK, TELL
from tests.wires import PREFACE, REQUEST, RESPONSE, Frame, grpc, literal
from tests.wires import settings as a_settings_frame

CORPUS = Path(__file__).with_name("corpus")

# ---------------------------------------------------------------------------------------------- frames that are nearly
# right

numbers = st.sampled_from([1, 1, 1, 3, 3, 3, 5, 5, 7, 9, 11, 13, 15, 0, 2, 101])
sizes = st.sampled_from([0, 1, 2, 5, 9, 100, 1000, 1023, 1024, 5000, 16384, 40000, 65535, 70000])
words = st.sampled_from([0, 1, 2, 100, 16384, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])


def _path(path: str) -> bytes:
    return literal([(k, path if k == ":path" else v) for k, v in REQUEST])


blocks = st.one_of(
    st.sampled_from(
        [
            _path(SAY),
            _path(TALK),
            _path(TELL),
            _path("/splitd.Test/Pass"),
            literal(REQUEST),
            literal(RESPONSE),
            literal([*RESPONSE, ("grpc-status", "0")]),
            literal([("grpc-status", "0")]),
            literal([("grpc-status", "14"), ("splitd-stopping", "1")]),
            literal([(":status", "100")]),
            literal([(":status", "404")]),
            literal([*REQUEST, ("content-length", "10")]),
            literal([*REQUEST, ("grpc-timeout", "1n")]),
            literal([*REQUEST, ("grpc-timeout", "nonsense")]),
            literal([*REQUEST, ("x-bin", "!")]),
            literal([*REQUEST, ("grpc-encoding", "gzip")]),
            literal([(":method", "GET"), (":scheme", "http"), (":path", "/")]),
            literal([*REQUEST, ("x", "v" * 3000)]),
            literal([*REQUEST, ("x", b"\xff\xfe")]),
            b"\x40\x01x\x01y",
            b"\xbe",
            b"\x20",
            b"\x20\x3f\xe1\x1f",
            b"",
            literal([*REQUEST, ("connection", "close")]),
            literal(REQUEST)[:-3],
        ]
    ),
    st.binary(max_size=20),
)
payloads = st.one_of(
    st.builds(bytes, sizes.filter(lambda size: size <= 16384)),
    st.sampled_from(
        [
            grpc(b"hello"),
            grpc(b""),
            grpc(b"") * 100,
            grpc(b"hello") * 3,
            grpc(b"hello")[:-2],
            grpc(b"x", 1),
            grpc(b"x", 9),
            b"\0\xff\xff\xff\xff",
            grpc(bytes(9000)),
            grpc(bytes(20000))[:10000],
            b"\0\0",
        ]
    ),
)
flags = st.sampled_from([0, 1, 4, 5, 8, 9, 12, 13, 32, 36, 37, 255])


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return bytes(Frame(kind, flags, stream, payload))


frames = st.one_of(
    st.builds(
        lambda stream, block, flags: _frame(1, flags, stream, block),
        numbers,
        blocks,
        st.sampled_from([4, 5, 4, 5, 0, 1]),
    ),
    st.builds(lambda stream, block: _frame(1, 4, stream, block), numbers, blocks),
    st.builds(
        lambda stream, payload, flags: _frame(0, flags, stream, payload), numbers, payloads, st.sampled_from([0, 0, 1])
    ),
    st.builds(
        lambda stream, payload, pad, end: _frame(0, 8 | end, stream, bytes([pad]) + payload[:1000] + bytes(pad)),
        numbers,
        payloads,
        st.integers(0, 255),
        st.booleans(),
    ),
    st.builds(lambda stream, value: _frame(8, 0, stream, value.to_bytes(4, "big")), numbers, words),
    st.builds(
        lambda stream, code: _frame(3, 0, stream, code.to_bytes(4, "big")), numbers, st.sampled_from([0, 7, 8, 99])
    ),
    st.builds(
        lambda values: _frame(4, 0, 0, b"".join(n.to_bytes(2, "big") + v.to_bytes(4, "big") for n, v in values)),
        st.lists(st.tuples(st.integers(0, 8), words), max_size=4),
    ),
    st.builds(
        lambda value: _frame(4, 0, 0, b"\0\4" + value.to_bytes(4, "big")),
        st.sampled_from([0, 1, 10, 1000, 65535, 1 << 20]),
    ),
    st.builds(
        lambda last, code: _frame(7, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big") + b"why"),
        numbers,
        st.sampled_from([0, 2, 11]),
    ),
    st.builds(
        lambda flags, payload: _frame(6, flags, 0, payload),
        st.sampled_from([0, 1]),
        st.sampled_from([bytes(8), bytes(8), b"short"]),
    ),
    st.builds(lambda stream, block, flags: _frame(9, flags, stream, block), numbers, blocks, st.sampled_from([0, 4])),
    st.builds(lambda stream, payload: _frame(2, 0, stream, payload), numbers, st.binary(min_size=4, max_size=6)),
    st.builds(_frame, st.integers(0, 12), flags, numbers, st.binary(max_size=30)),
)


@st.composite
def feeds(draw: st.DrawFn) -> list[Step]:
    """Return a few frames, mostly unchanged; others with flipped bits, truncated, out of order or repeated; in one read
    or in several.
    """
    parts = draw(st.lists(frames, min_size=1, max_size=5))
    mutation = draw(st.sampled_from(["", "", "", "", "", "flip", "cut", "shuffle", "twice", "insert"]))
    if mutation == "shuffle":
        parts = draw(st.permutations(parts))
    elif mutation == "twice":
        parts = parts + parts
    data = b"".join(parts)
    if mutation in {"flip", "cut", "insert"} and data:
        at = draw(st.integers(0, len(data) - 1))
        if mutation == "flip":
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
        elif mutation == "cut":
            data = data[:at]
        else:
            data = data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at:]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    return [("feed", data[a:b].hex()) for a, b in itertools.pairwise([0, *cuts, len(data)])]


acts = st.one_of(
    st.tuples(
        st.sampled_from(["send", "answer", "consume", "head", "tail", "reset", "low", "linger"]),
        st.integers(0, 9),
        sizes,
    ),
    st.tuples(st.sampled_from(["send", "answer", "consume"]), st.integers(0, 9), sizes),
    st.tuples(st.sampled_from(["block", "unblock", "drain", "ping", "open", "open", "open"])),
)
hello = a_settings_frame().hex()
scripts = st.builds(
    lambda steps: [step for some in steps for step in some],
    st.lists(st.one_of(feeds(), feeds(), st.lists(acts, min_size=1, max_size=3)), min_size=1, max_size=25),
)


def on_a_server(script: list[Step]) -> None:
    wire_peers.alone([("feed", PREFACE.hex() + hello), *script], client=False)


def on_a_client(script: list[Step]) -> None:
    wire_peers.alone([("feed", hello), ("open",), ("open",), *script], client=True)


def on_both(script: list[Step]) -> None:
    wire_peers.together([("open",), ("open",), ("ping",), *script])


def on_a_node(script: list[Step]) -> None:
    # not a Runner: that would take the watcher of child processes from the loop that the tests share
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(wire_peers.serving(script))
    finally:
        loop.close()


WORLDS = {world.__name__: world for world in (on_a_server, on_a_client, on_both, on_a_node)}


def _requests(first: str, second: str) -> list[Step]:
    return [("feed", (_frame(1, 4, 1, _path(first)) + _frame(1, 4, 3, _path(second))).hex())]


OPENINGS: dict[str, list[Step]] = {
    "on_a_server": _requests(SAY, SAY),
    "on_a_client": [("feed", _frame(1, 4, 1, literal(RESPONSE)).hex())],
    "on_both": [],
    "on_a_node": _requests("/splitd.Test/Pass", TALK),
}
"""The beginnings of fuzzed scripts: streams 1 and 3 are open, since a nearly valid frame for a stream that does not
exist finds nothing.
"""


def load(path: Path) -> tuple[str, list[Step]]:
    """Read a file of the corpus: its first line says why it is kept, the second where it runs; then a step a line."""
    _, world, *steps = path.read_text().splitlines()
    return world, [tuple(json.loads(step)) for step in steps]


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.script")), ids=lambda path: path.stem)
def test_crashes_found_before_are_mended(path: Path) -> None:
    """Each script of the corpus runs in the world where it was found, and in all the others."""
    named, script = load(path)
    assert named in WORLDS
    for world in WORLDS.values():
        world(script)


def hunt(name: str, seed: int) -> int:
    """Run a hundred scripts in one of the worlds; return their number."""
    ran = 0

    @hypothesis.seed(seed)
    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(script=scripts)
    def one(script: list[Step]) -> None:
        nonlocal ran
        ran += 1
        script = [*OPENINGS[name], *script]
        note("\n".join(["a script for tests/fuzz/corpus:", "# why it is kept", name, *map(json.dumps, script)]))
        WORLDS[name](script)

    one()
    return ran


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_nothing_that_a_peer_does_is_more_than_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts run until the time is over: the only exceptions are protocol errors, no state exceeds its bounds, no byte
    of a window is lost, nothing is left behind.
    """
    seconds = float(os.environ.get("FUZZ_SECONDS", "8"))
    seed = int(os.environ.get("FUZZ_SEED", "20230844"))
    until = time.monotonic() + seconds
    ran = dict.fromkeys(WORLDS, 0)
    logging.getLogger("services").setLevel(logging.ERROR)
    try:
        for number, name in enumerate(itertools.cycle(WORLDS)):
            if time.monotonic() > until:
                break
            ran[name] += hunt(name, seed + number)
    finally:
        logging.getLogger("services").setLevel(logging.NOTSET)
        with capsys.disabled():
            print(f"\nfuzzed for {seconds:g}s from FUZZ_SEED={seed}: {ran}")
