"""Verdicts on pulls of recorded shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.traces.causes import Kind
from services.traces.store import Live, Trace
from services.traces.verdict import Verdict, judge, wanted, with_open
from tests.unit.traces.spans import OTHER, T0, Spans

HOST = "registry.example:5000"
DIGESTS = [f"sha256:{number:064x}" for number in range(4)]


class Pull(Spans):
    """A pull as the node records it: a root of the gateway, layers that are fetched and unpacked as they arrive."""

    def __init__(self, end: float, *, unpacks: bool = True, **root) -> None:
        super().__init__()
        about: Any = {"splitd__operation": "pull", "container__image__name": "box:1", "splitd__outcome": "ok"} | root
        self.root = self.add("containerd.services.transfer.v1.Transfer/Transfer", 0, end, **about)
        self.pull = self.add("images.pull", 0, end, self.root)
        self.unpacks = self.add("images.unpack", 0, end, self.pull) if unpacks else ""

    def fetched(
        self, number: int, start: float, first: float, end: float, megabytes: float, *, host: str = HOST
    ) -> str:
        """A layer whose first byte comes at ``first``; the answer is the fetch."""
        about: Any = {"oci__layer__digest": DIGESTS[number], "splitd__layer": number}
        layer = self.add("images.layer", start, end, self.pull, **about)
        fetch = self.add("registry.fetch", start, end, layer, splitd__bytes=megabytes * 1e6)
        request = self.add("registry.request", start, end, fetch, server__address=host)
        self.add("registry.first_byte", start, first, request)
        self.add("registry.transfer", first, end, request, splitd__bytes=megabytes * 1e6)
        return fetch

    def unpacked(
        self, number: int, start: float, end: float, *, link: str = "", rest: float = 0, **times: float
    ) -> str:
        """A layer in its worker; ``times`` are the measured ones, in milliseconds."""
        about: Any = {"oci__layer__digest": DIGESTS[number], "splitd__layer": number}
        layer = self.add("unpack.layer", start, end + rest, self.unpacks, **about)
        measured: Any = {f"splitd__time__{name}_ms": value for name, value in times.items()}
        return self.add("diff.unpack", start, end, layer, link=link, service="splitd-snapshots", **measured)


def seconds(verdict: Verdict, kind: Kind, part: str = "") -> float:
    return sum(cause.seconds for cause in verdict.causes if cause.kind is kind and part in {"", cause.part})


def test_bytes_come_slowly() -> None:
    """The worker's time without bytes is what the fetch of its layer did then."""
    pull = Pull(10_000)
    fetch = pull.fetched(2, 0, 100, 9_500, 131.6)
    pull.unpacked(2, 0, 10_000, link=fetch, cpu=600, bytes=9_300, disk=50, runqueue=50)
    verdict = judge(pull.trace())
    assert verdict.wall == 10
    assert seconds(verdict, Kind.NETWORK, "bandwidth") == pytest.approx(9.3 * 9.4 / 9.5, abs=0.01)
    assert seconds(verdict, Kind.REGISTRY, "first byte") == pytest.approx(9.3 * 0.1 / 9.5, abs=0.01)
    assert seconds(verdict, Kind.CPU) == pytest.approx(0.65)
    assert verdict.sentence == (
        "9.2 of 10.0 s: waiting for bytes of layer 3 from registry.example:5000 at 14 MB/s;"
        " nothing else of it was at work meanwhile"
    )
    assert verdict.advice == (
        "With a faster way to registry.example:5000, such as a mirror nearby, it would take 0.80 s at best: 9.2 s less"
    )
    assert verdict.gain == pytest.approx(9.2, abs=0.01)
    assert (verdict.causes[0].host, verdict.causes[0].layer, verdict.causes[0].digest) == (HOST, 2, DIGESTS[2])


def test_the_fetch_is_found_by_its_digest() -> None:
    """A worker of an old release links to nothing."""
    pull = Pull(1000)
    pull.fetched(0, 0, 500, 999, 1)
    pull.unpacked(0, 0, 1000, cpu=100, bytes=900)
    assert seconds(judge(pull.trace()), Kind.REGISTRY, "first byte") == pytest.approx(0.5)


def test_until_the_first_bytes_a_worker_has_none() -> None:
    """The first part of a blob begins the others, and is not done when they begin: the time before is its own."""
    pull = Pull(1000)
    layer = pull.add("images.layer", 0, 900, pull.pull, oci__layer__digest=DIGESTS[0], splitd__layer=0)
    for start, first, end, offset in ((0, 400, 600, 0), (410, 710, 900, 16 << 20)):
        fetch = pull.add("registry.fetch", start, end, layer, splitd__offset=offset)
        request = pull.add("registry.request", start, end, fetch, server__address=HOST)
        pull.add("registry.first_byte", start, first, request)
        pull.add("registry.transfer", first, end, request, splitd__bytes=16 << 20)
    pull.unpacked(0, 0, 1000, link=layer, cpu=400, bytes=600)
    verdict = judge(pull.trace())
    assert seconds(verdict, Kind.REGISTRY, "first byte") == pytest.approx(0.4 + 0.2 * 300 / 500, abs=0.005)
    assert seconds(verdict, Kind.CPU) == pytest.approx(0.4)
    waiting, *rest = verdict.path
    assert waiting.cause.part == "first byte"
    assert waiting.seconds == pytest.approx(0.4)
    assert rest[0].cause.kind is Kind.CPU


def test_bytes_of_an_earlier_attempt_are_there_at_once() -> None:
    """A worker that has them does not wait for the first of those that are missing."""
    pull = Pull(1000)
    fetch = pull.add("registry.fetch", 0, 900, pull.pull, oci__layer__digest=DIGESTS[0], splitd__offset=1 << 20)
    request = pull.add("registry.request", 0, 900, fetch, server__address=HOST)
    pull.add("registry.first_byte", 0, 400, request)
    pull.add("registry.transfer", 400, 900, request, splitd__bytes=16 << 20)
    pull.unpacked(0, 0, 1000, link=fetch, cpu=500, bytes=500)
    verdict = judge(pull.trace())
    assert seconds(verdict, Kind.REGISTRY, "first byte") == pytest.approx(0.5 * 4 / 9)
    assert seconds(verdict, Kind.NETWORK, "bandwidth") == pytest.approx(0.5 * 5 / 9)


def test_bytes_that_had_come() -> None:
    """A transfer is waited for only while it has no bytes; what the node did with them is another matter."""
    pull = Pull(1000, unpacks=False)
    layer = pull.add("images.layer", 0, 1000, pull.pull, oci__layer__digest=DIGESTS[0], splitd__layer=0)
    request = pull.add("registry.request", 0, 1000, layer, server__address=HOST)
    pull.add("registry.transfer", 0, 1000, request, splitd__bytes=5e6, splitd__bytes_ms=300)
    verdict = judge(pull.trace())
    assert seconds(verdict, Kind.NETWORK) == pytest.approx(0.3)
    assert seconds(verdict, Kind.UNKNOWN, "taking bytes in") == pytest.approx(0.7)


def test_bytes_that_are_there_wait_for_the_disk() -> None:
    """The node hashes and writes them more slowly than they come; the fetch has measured that."""
    pull = Pull(1000)
    fetch = pull.add("registry.fetch", 0, 1000, pull.pull, splitd__taking__disk_ms=500, splitd__taking__cpu_ms=100)
    pull.add("registry.transfer", 0, 1000, fetch, splitd__bytes=5e6, splitd__bytes_ms=300)
    verdict = judge(pull.trace())
    assert seconds(verdict, Kind.NETWORK, "bandwidth") == pytest.approx(0.3)
    assert seconds(verdict, Kind.DISK) == pytest.approx(0.5)
    assert seconds(verdict, Kind.CPU) == pytest.approx(0.1)
    assert seconds(verdict, Kind.UNKNOWN) == pytest.approx(0.1)


def test_a_slow_mirror() -> None:
    """It began to serve and was given up; or it serves, but answers late."""
    pull = Pull(3000, unpacks=False)
    layer = pull.add("images.layer", 0, 3000, pull.pull, oci__layer__digest=DIGESTS[0], splitd__layer=0)
    mirror: Any = {"server__address": "mirror:1", "splitd__registry__mirror": True}
    ok: Any = {"http__response__status_code": 200}
    given_up = pull.add("registry.request", 0, 1500, layer, **mirror, **ok, error__type="slow")
    pull.add("registry.transfer", 100, 1500, given_up, splitd__bytes=1000, splitd__bytes_ms=1400)
    late = pull.add("registry.request", 1500, 3000, layer, **mirror, **ok)
    pull.add("registry.first_byte", 1500, 2500, late)
    pull.add("registry.transfer", 2500, 3000, late)
    verdict = judge(pull.trace())
    assert seconds(verdict, Kind.MIRROR, "slow") == pytest.approx(1.5)
    assert seconds(verdict, Kind.MIRROR, "first byte") == pytest.approx(1.0)
    assert verdict.advice.startswith("Without the mirror mirror:1")


def test_a_slow_peer_is_a_cause_with_its_name() -> None:
    """It serves slowly; another one was given up, and one did not serve at all."""
    pull = Pull(4000, unpacks=False)
    layer = pull.add("images.layer", 0, 4000, pull.pull, oci__layer__digest=DIGESTS[0], splitd__layer=0)
    ok: Any = {"splitd__registry__mirror": True, "http__response__status_code": 200}

    def request(start: int, end: int, node: str, **more: Any) -> Any:
        about: Any = {"splitd__peer": node, "server__address": f"peer {node}"}
        return pull.add("registry.request", start, end, layer, **about, **more)

    pull.add("fleet.claim", 0, 100, layer)
    request(100, 500, "dead", error__type="connect")
    left = request(500, 1000, "left", **ok, error__type="lost")
    pull.add("registry.transfer", 600, 1000, left, splitd__bytes=1000, splitd__bytes_ms=400)
    slow = request(1000, 4000, "slow", **ok)
    pull.add("registry.first_byte", 1000, 1500, slow, server__address="peer slow")
    about: Any = {"server__address": "peer slow"}
    pull.add("registry.transfer", 1500, 4000, slow, **about, splitd__bytes=5_000_000, splitd__bytes_ms=2400)
    verdict = judge(pull.trace())
    assert seconds(verdict, Kind.PEER, "bandwidth") == pytest.approx(2.4)
    assert seconds(verdict, Kind.PEER, "first byte") == pytest.approx(0.5)
    assert seconds(verdict, Kind.PEER, "given up") == pytest.approx(0.5)
    assert seconds(verdict, Kind.PEER, "dead") == pytest.approx(0.4)
    assert seconds(verdict, Kind.PEER, "claim") == pytest.approx(0.1)
    assert "waiting for bytes of layer 1 from peer slow at 2.0 MB/s" in verdict.sentence
    assert verdict.advice.startswith("If peer slow gave its bytes at once, it would take 1.1 s at best")


def test_the_first_byte() -> None:
    """It is the registry's."""
    pull = Pull(1000)
    fetch = pull.fetched(0, 0, 800, 900, 1)
    pull.unpacked(0, 0, 1000, link=fetch, cpu=100, bytes=900)
    verdict = judge(pull.trace())
    assert verdict.sentence.startswith(f"0.80 of 1.0 s: waiting for the first byte of layer 1 from {HOST}")
    assert verdict.advice == f"If {HOST} answered at once, it would take 0.20 s at best: 0.80 s less"


def test_a_slow_disk() -> None:
    """A large layer from a slow host, but the disk was waited for, and that is said."""
    pull = Pull(10_000)
    fetch = pull.fetched(0, 0, 10, 9_900, 1)
    pull.unpacked(0, 0, 10_000, link=fetch, cpu=500, bytes=500, disk=9_000)
    verdict = judge(pull.trace())
    assert verdict.kinds == (verdict.causes[0].kind,) == (Kind.DISK,)
    assert verdict.sentence == "9.0 of 10.0 s: writing to the disk (layer 1)"
    assert verdict.advice == "With a faster disk, it would take 1.0 s at best: 9.0 s less"


def test_no_processor_free() -> None:
    """Parts of one kind are one group, each with its time."""
    pull = Pull(1000)
    pull.unpacked(0, 0, 1000, cpu=450, inflate=300, digest=50, runqueue=500, bytes=50)
    verdict = judge(pull.trace())
    assert verdict.sentence == (
        "0.95 of 1.0 s: waiting for a processor to be free (layer 1) 0.50 s, inflating (layer 1) 0.30 s, working on a"
        " processor (layer 1) 0.10 s"
    )
    assert seconds(verdict, Kind.NETWORK, "bytes") == pytest.approx(0.05)


def test_a_pause_that_the_registry_asked_for() -> None:
    """The fetch's pause is seen through the worker's wait for bytes."""
    pull = Pull(4000)
    layer = pull.add("images.layer", 0, 3500, pull.pull, oci__layer__digest=DIGESTS[1], splitd__layer=1)
    fetch = pull.add("registry.fetch", 0, 3500, layer, server__address=HOST)
    pull.add("registry.request", 0, 100, fetch, server__address=HOST, http__response__status_code=429)
    pull.add("wait.pause", 100, 3100, fetch, splitd__pause__reason="429", server__address=HOST)
    request = pull.add("registry.request", 3100, 3500, fetch, server__address=HOST, http__response__status_code=200)
    pull.add("registry.transfer", 3150, 3500, request, splitd__bytes=1e6)
    unpack = pull.add("unpack.layer", 0, 4000, pull.unpacks, oci__layer__digest=DIGESTS[1], splitd__layer=1)
    pull.add("wait.bytes", 10, 3100, unpack, link=fetch)
    verdict = judge(pull.trace())
    assert seconds(verdict, Kind.REGISTRY, "rate limit") == pytest.approx(3.0)
    assert f"pausing (layer 2) because {HOST} limits the rate of requests" in verdict.sentence


def test_a_dead_mirror() -> None:
    """All time of its request is its; the next host's is not."""
    pull = Pull(12_000, unpacks=False)
    resolve = pull.add("registry.resolve", 0, 10_500, pull.pull)
    dead: Any = {"server__address": "mirror:1", "splitd__registry__mirror": True}
    request = pull.add("registry.request", 0, 10_000, resolve, **dead)
    pull.add("registry.connect", 0, 10_000, request)
    pull.add("registry.request", 10_000, 10_500, resolve, server__address=HOST, http__response__status_code=200)
    pull.add("diff.unpack", 10_500, 12_000, pull.pull, splitd__time__cpu_ms=1500)
    verdict = judge(pull.trace())
    assert verdict.sentence.startswith("10.0 of 12.0 s: trying the mirror mirror:1, which did not serve")
    assert verdict.advice.startswith("Without the mirror mirror:1, it would take 2.0 s at best")


def test_a_token_server_that_sleeps() -> None:
    """Whatever phase of the token's request it was."""
    pull = Pull(2500, unpacks=False)
    resolve = pull.add("registry.resolve", 0, 2100, pull.pull)
    auth = pull.add("registry.auth", 0, 2000, resolve, server__address="token.example")
    request = pull.add("registry.request", 0, 2000, auth, server__address="token.example")
    pull.add("registry.first_byte", 10, 2000, request)
    verdict = judge(pull.trace())
    assert verdict.causes[0].part == "auth"
    assert verdict.sentence.startswith("2.0 of 2.5 s: waiting for a token of token.example")


def test_another_pull_was_before() -> None:
    """A place that another pull holds is a queue, and that pull is named; what it did meanwhile is its own matter."""
    other = Spans(OTHER)
    first = other.add("Transfer", -9000, 8000, splitd__operation="pull", container__image__name="large:1")
    holder = other.add("registry.fetch", -9000, 8000, first, server__address=HOST)
    pull = Pull(10_000, unpacks=False)
    layer = pull.add("images.layer", 0, 10_000, pull.pull, oci__layer__digest=DIGESTS[0], splitd__layer=0)
    pull.add("wait.budget", 0, 8000, layer, link=f"{OTHER}-{holder}", splitd__wait__for="connections")
    fetch = pull.add("registry.fetch", 8000, 10_000, layer, server__address=HOST)
    pull.add("registry.transfer", 8000, 10_000, fetch)
    assert wanted(pull.trace()) == {OTHER}
    verdict = judge(pull.trace(), [other.trace()])
    assert (verdict.causes[0].kind, verdict.causes[0].holder) == (Kind.QUEUE, "the pull of large:1")
    assert verdict.sentence.startswith("8.0 of 10.0 s: waiting for a place that the pull of large:1 held")
    assert verdict.path[0].span.trace == OTHER
    alone = judge(pull.trace())
    assert alone.causes[0].kind is Kind.QUEUE
    assert alone.causes[0].seconds == pytest.approx(8.0)


def test_a_lock_under_which_another_pull_works() -> None:
    """What its worker measured is its own: for this pull it is the lock."""
    other = Spans(OTHER)
    first = other.add("Transfer", 0, 5000, splitd__operation="pull", container__image__name="box:2")
    about: Any = {"oci__layer__digest": DIGESTS[0]}
    other.add("registry.fetch", 0, 5000, first, server__address=HOST, **about)
    holder = other.add("unpack.layer", 0, 5000, first, **about)
    other.add("diff.unpack", 0, 5000, holder, splitd__time__cpu_ms=1000, splitd__time__bytes_ms=4000)
    pull = Pull(5000)
    pull.add("wait.lock", 0, 5000, pull.unpacks, link=f"{OTHER}-{holder}")
    verdict = judge(pull.trace(), [other.trace()])
    assert [(cause.kind, cause.holder) for cause in verdict.causes] == [(Kind.LOCK, "the pull of box:2")]


def test_the_other_pull_is_still_under_way() -> None:
    """Its root is open: it says who it is, and its open spans hold what is waited for."""
    other = Spans(OTHER)
    first = other.add("Transfer", -9000, 0, splitd__operation="pull", container__image__name="large:1")
    holder = other.add("registry.fetch", -9000, 0, first)
    ended = other.add("registry.request", -9000, -8000, holder)
    pull = Pull(5000, unpacks=False)
    pull.add("wait.budget", 0, 4000, pull.pull, link=f"{OTHER}-{holder}")
    live = Live(T0 + 5_000_000_000, [replace(span, end=0) for span in other.spans])
    stored = [Trace(OTHER, [span for span in other.spans if span.id == ended])]
    (found,) = with_open(stored, wanted(pull.trace()), live)
    assert {span.id: span.seconds for span in found.spans} == {first: 14.0, holder: 14.0, ended: 1.0}
    verdict = judge(pull.trace(), [found])
    assert verdict.sentence.startswith("4.0 of 5.0 s: waiting for a place that the pull of large:1 held")
    assert with_open([], {"f" * 32}, live) == []


def test_a_place_that_the_pull_itself_holds_is_no_queue() -> None:
    """Its own layers share connections: what the other layer waited for is the cause."""
    pull = Pull(2000, unpacks=False)
    first = pull.fetched(0, 0, 10, 1000, 1)
    layer = pull.add("images.layer", 0, 2000, pull.pull, oci__layer__digest=DIGESTS[1], splitd__layer=1)
    pull.add("wait.budget", 0, 1000, layer, link=first)
    fetch = pull.add("registry.fetch", 1000, 2000, layer)
    request = pull.add("registry.request", 1000, 2000, fetch, server__address=HOST)
    pull.add("registry.transfer", 1000, 2000, request)
    verdict = judge(pull.trace())
    assert {cause.kind for cause in verdict.causes} == {Kind.NETWORK, Kind.REGISTRY}
    assert seconds(verdict, Kind.NETWORK, "bandwidth") == pytest.approx(1.99)


def test_a_collection_held_a_lock() -> None:
    """The collection is another trace."""
    other = Spans(OTHER)
    held = other.add("metadata.collect", -100, 3000, splitd__operation="collect")
    pull = Pull(3500)
    commit = pull.add("content.commit", 0, 3200, pull.unpacks, service="splitd-content")
    pull.add("wait.lock", 0, 3000, commit, link=f"{OTHER}-{held}", splitd__wait__for="the collection")
    verdict = judge(pull.trace(), [other.trace()])
    assert verdict.sentence.startswith("3.0 of 3.5 s: waiting for a lock that a collection held")
    assert judge(pull.trace()).sentence.startswith("3.0 of 3.5 s: waiting for a lock that the collection held")


def test_a_service_that_was_away_held_a_call() -> None:
    """A wait without a link names its holder as it was noted, as a clause of its own."""
    pull = Pull(3500)
    commit = pull.add("content.commit", 0, 3200, pull.unpacks, service="splitd-content")
    pull.add("wait.lock", 0, 3000, commit, splitd__wait__for="service content, which is away")
    sentence = judge(pull.trace()).sentence
    assert sentence.startswith("3.0 of 3.5 s: waiting for a lock that service content, which is away, held")


def test_spans_without_parents_say_what_went_on_meanwhile() -> None:
    """The spans above them were dropped: time of which nothing is known is theirs, other time is not."""
    spans = Spans()
    root = spans.add("Transfer", 0, 1000, splitd__operation="pull")
    spans.add("diff.unpack", 600, 1000, root, splitd__time__cpu_ms=400)
    request = spans.add("registry.request", 100, 700, "f" * 16, server__address=HOST)
    spans.add("registry.first_byte", 100, 700, request)
    verdict = judge(spans.trace())
    assert seconds(verdict, Kind.REGISTRY, "first byte") == pytest.approx(0.5)
    assert seconds(verdict, Kind.CPU) == pytest.approx(0.4)
    assert seconds(verdict, Kind.UNKNOWN, "Transfer") == pytest.approx(0.1)


def test_a_client_that_fetches_by_itself() -> None:
    """What its Writes waited for is the client's; the commit below them is not, nor what they did not measure."""
    spans = Spans()
    root = spans.add("pull", 0, 1000, splitd__operation="pull")
    hop = spans.add("containerd.services.content.v1.Content/Write", 0, 1000, root)
    times = {"client": 600, "disk": 50, "cpu": 40, "digest": 40}
    measured: Any = {f"splitd__time__{name}_ms": value for name, value in times.items()}
    write = spans.add("containerd.services.content.v1.Content/Write", 0, 1000, hop, **measured)
    spans.add("content.fsync", 700, 1000, spans.add("content.commit", 700, 1000, write))
    verdict = judge(spans.trace())
    assert seconds(verdict, Kind.CLIENT) == pytest.approx(0.6)
    assert seconds(verdict, Kind.DISK, "fsync") == pytest.approx(0.3)
    assert seconds(verdict, Kind.UNKNOWN) == pytest.approx(0.01)


def test_a_step_that_measured_its_time_keeps_its_name() -> None:
    """An fsync that waited for a processor, too."""
    spans = Spans()
    root = spans.add("pull", 0, 1000, splitd__operation="pull")
    times: Any = {"splitd__time__cpu_ms": 100, "splitd__time__runqueue_ms": 300, "splitd__time__disk_ms": 600}
    spans.add("content.fsync", 0, 1000, root, **times)
    verdict = judge(spans.trace())
    assert seconds(verdict, Kind.DISK, "fsync") == pytest.approx(0.6)
    assert seconds(verdict, Kind.CPU, "no processor free") == pytest.approx(0.3)


def test_a_run() -> None:
    """The shim and runc."""
    spans = Spans()
    root = spans.add("Create", 0, 500, splitd__operation="run", splitd__outcome="ok")
    spans.add("tasks.shim.start", 0, 100, root)
    spans.add("tasks.shim.create", 100, 480, root)
    verdict = judge(spans.trace())
    assert verdict.operation == "run"
    assert verdict.sentence.startswith("0.48 of 0.50 s: creating the container in the shim and runc 0.38 s, starting")


def test_several_layers_of_one_cause() -> None:
    """Those that most of the time is about are named together."""
    pull = Pull(1000)
    for number in range(3):
        pull.unpacked(number, number * 333, (number + 1) * 333, cpu=333, inflate=333)
    assert judge(pull.trace()).sentence == "1.0 of 1.0 s: inflating (layers 1, 2 and 3)"


def test_the_rate_is_that_of_the_host() -> None:
    """Over all connections: here four of 1 MB/s at once, though only one is on the path."""
    pull = Pull(4000, unpacks=False)
    for number in range(4):
        pull.fetched(number, 0, 1, 3990 + number, 4)
    assert "at 4.0 MB/s" in judge(pull.trace()).sentence


def test_bytes_that_another_pull_fetches() -> None:
    """They come as slowly for both; the other pull is named."""
    other = Pull(5000, container__image__name="box:2", unpacks=False)
    fetch = other.fetched(2, 0, 1, 4999, 20)
    for number, span in enumerate(other.spans):
        other.spans[number] = replace(
            span, trace=OTHER, id=f"b{span.id[1:]}", parent=span.parent and f"b{span.parent[1:]}"
        )
    pull = Pull(5000)
    unpack = pull.add("unpack.layer", 0, 5000, pull.unpacks, oci__layer__digest=DIGESTS[2], splitd__layer=0)
    pull.add("wait.bytes", 0, 4999, unpack, link=f"{OTHER}-b{fetch[1:]}")
    verdict = judge(pull.trace(), [Trace(OTHER, other.spans)])
    assert verdict.sentence.startswith(
        f"5.0 of 5.0 s: waiting for bytes of layer 1 from {HOST} at 4.0 MB/s, which the pull of box:2 fetched"
    )


def test_a_process_that_does_not_answer() -> None:
    """Between a call and the beginning of its work is whoever was called."""
    pull = Pull(3000, unpacks=False)
    rpc: Any = {"rpc__system": "grpc"}
    call = pull.add("Content/Read", 0, 3000, pull.pull, service="splitd-gateway", kind=3, **rpc)
    pull.add("Content/Read", 2900, 3000, call, service="splitd-content", kind=2, **rpc)
    assert judge(pull.trace()).sentence == "3.0 of 3.0 s: the node's own calls to content"
    pull = Pull(3000, unpacks=False)
    rpc["rpc__service"] = "splitd.localfiles.v1.LocalFiles"
    pull.add("LocalFiles/Begin", 0, 3000, pull.pull, service="splitd-gateway", kind=3, **rpc)
    assert judge(pull.trace()).sentence == "3.0 of 3.0 s: the node's own calls to content"
    pull = Pull(3000, unpacks=False)
    pull.add("LocalFiles/Begin", 0, 3000, pull.pull, kind=3, **rpc)
    assert judge(pull.trace()).sentence == "3.0 of 3.0 s: the node's own calls to gateway"


def test_an_image_verifier() -> None:
    """It has a name."""
    pull = Pull(3000, unpacks=False)
    pull.add("images.verify", 0, 2900, pull.pull, verifier="policy")
    verdict = judge(pull.trace())
    assert verdict.sentence.startswith("2.9 of 3.0 s: waiting for the image verifier policy")
    assert verdict.advice.startswith("Without the image verifier policy")


def test_a_pause_that_is_no_rate_limit() -> None:
    """Another status with Retry-After; and a pause of our own."""
    pull = Pull(5000, unpacks=False)
    where: Any = {"server__address": HOST}
    pull.add("wait.pause", 0, 4000, pull.pull, splitd__pause__reason="Retry-After", **where)
    pull.add("wait.pause", 4000, 5000, pull.pull, splitd__pause__reason="retry", **where)
    verdict = judge(pull.trace())
    assert verdict.sentence.startswith(f"5.0 of 5.0 s: pausing because {HOST} asked for it")
    assert seconds(verdict, Kind.REGISTRY, "retry") == 1


def test_further_causes_are_named() -> None:
    """Those that took a good part of the time, up to two: half as much is enough if somebody else held the pull up."""
    pull = Pull(6000, unpacks=False)
    pull.add("registry.auth", 0, 700, pull.pull, server__address="auth:1")
    pull.add("wait.pause", 700, 1400, pull.pull, server__address=HOST, splitd__pause__reason="429")
    measured: Any = {"splitd__time__cpu_ms": 3400, "splitd__time__disk_ms": 1000, "splitd__time__runqueue_ms": 200}
    pull.add("diff.unpack", 1400, 6000, pull.pull, **measured)
    verdict = judge(pull.trace())
    assert verdict.sentence == (
        "3.6 of 6.0 s: working on a processor;"
        " 0.70 s more: waiting for a token of auth:1;"
        f" 0.70 s more: pausing because {HOST} limits the rate of requests"
    )
    assert verdict.kinds == (Kind.CPU, Kind.REGISTRY, Kind.REGISTRY)
    assert verdict.advice.startswith("With more or faster processors")


def test_further_causes_that_matter_little_are_not_named() -> None:
    """The first byte of a registry that answers, a disk that works, and what nobody recorded."""
    pull = Pull(6000, unpacks=False)
    pull.add("registry.first_byte", 0, 500, pull.pull, server__address=HOST)
    pull.add("diff.unpack", 500, 4500, pull.pull, splitd__time__cpu_ms=2900, splitd__time__disk_ms=1100)
    verdict = judge(pull.trace())
    assert verdict.sentence == "2.9 of 6.0 s: working on a processor"
    assert verdict.kinds == (Kind.CPU,)
    assert seconds(verdict, Kind.UNKNOWN) == pytest.approx(1.5)


def test_what_nobody_recorded_is_said() -> None:
    """Never put to a cause."""
    pull = Pull(1000)
    verdict = judge(pull.trace())
    assert verdict.sentence == "1.0 of 1.0 s: not recorded, in images.unpack"
    assert (verdict.advice, verdict.gain) == ("", 0)


def test_a_failed_pull() -> None:
    """The reason comes first."""
    spans = Spans()
    spans.add("Transfer", 0, 9000, splitd__operation="pull", splitd__outcome="failed", status=2, message="no such tag")
    said = judge(spans.trace()).sentence
    assert said == "failed after 9.0 s: no such tag; 9.0 of 9.0 s: not recorded, in Transfer"


def test_a_failed_pull_says_what_failed_first() -> None:
    """Not what failed because of it, and no advice: a failure that comes sooner is no help."""
    pull = Pull(9000, unpacks=False, splitd__outcome="failed")
    pull.spans[0] = replace(pull.spans[0], status=2, message="it did not work")
    fetch = pull.add("registry.fetch", 0, 8000, pull.pull, status=2, message="the disk is full")
    request = pull.add("registry.request", 0, 8000, fetch, server__address=HOST)
    pull.add("registry.first_byte", 0, 8000, request)
    verdict = judge(pull.trace())
    assert verdict.sentence == (
        f"failed after 9.0 s: the disk is full; 8.0 of 9.0 s: waiting for the first byte from {HOST};"
        " nothing else of it was at work meanwhile"
    )
    assert (verdict.advice, verdict.gain, verdict.outcome) == ("", 0, "failed")
    pull.spans[0] = replace(pull.spans[0], attributes={**pull.spans[0].attributes, "splitd.outcome": "cancelled"})
    verdict = judge(pull.trace())
    assert verdict.sentence.startswith("cancelled after 9.0 s; 8.0 of 9.0 s")
    assert (verdict.advice, verdict.gain) == ("", 0)


def test_a_failed_pull_names_what_was_cut_off() -> None:
    """The unpacking that another failure ended is not what failed, but what the pull waited for."""
    pull = Pull(71_000, splitd__outcome="failed")
    why = "service metadata: Records/Finish made no progress for 30 s"
    pull.add("splitd.records.v1.Records/Finish", 40_000, 70_000, pull.pull, status=2, message=why)
    pull.unpacked(0, 0, 70_010, cpu=500, disk=69_000, bytes=510)
    pull.spans[-1] = replace(pull.spans[-1], status=2, message="the unpacking was cut off: its caller gave up")
    verdict = judge(pull.trace())
    assert verdict.sentence.startswith(f"failed after 71.0 s: {why}; 69.0 of 71.0 s: writing to the disk")


def test_a_failed_pull_whose_registry_refused() -> None:
    """Requests are no failures by themselves; if nothing else says it, the last one does."""
    pull = Pull(4000, unpacks=False, splitd__outcome="failed")
    resolve = pull.add("registry.resolve", 0, 4000, pull.pull)
    for number in range(3):
        what: Any = {"server__address": HOST, "error__type": "429", "error__message": f"429 {'no' * (number + 1)}"}
        pull.add("registry.request", 1000 * number, 1000 * number + 100, resolve, **what)
    pull.add("wait.pause", 100, 2000, resolve, splitd__pause__reason="429", server__address=HOST)
    assert judge(pull.trace()).sentence.startswith(f"failed after 4.0 s: {HOST}: 429 nonono; ")
    assert judge(pull.trace()).advice == ""


def test_a_pull_whose_root_was_lost() -> None:
    """The verdict is about the pull all the same, and says that its root is missing."""
    spans = Spans()
    spans.add("Leases/Create", 0, 100, "e" * 16, status=2)
    about: Any = {"container__image__name": "box:1", "splitd__namespace": "default"}
    spans.add("images.pull", 50, 2000, "e" * 16, **about)
    verdict = judge(spans.trace())
    assert (verdict.operation, verdict.image, verdict.outcome) == ("pull", "box:1", "")
    assert "the root of this trace was not recorded, as after an end of the gateway meanwhile" in verdict.notes


def test_a_short_pull_is_the_nodes_own_calls() -> None:
    """Hops of which nothing else is known, of the client's side or of the server's; no list of milliseconds."""
    pull = Pull(300, unpacks=False)
    rpc: Any = {"rpc__system": "grpc"}
    pull.add("Content/Read", 0, 100, pull.pull, kind=3, **rpc)
    pull.add("Leases/Create", 100, 220, pull.pull, service="splitd-metadata", kind=2, **rpc)
    pull.add("one", 220, 240, pull.pull)
    verdict = judge(pull.trace())
    assert verdict.sentence == "0.22 of 0.30 s: the node's own calls"
    assert (verdict.kinds, verdict.advice) == ((Kind.NODE,), "")
    assert sum(part.end - part.start for part in verdict.path) == 300_000_000
    assert sum(cause.seconds for cause in verdict.causes) == pytest.approx(0.3)


def test_causes_that_are_too_short_to_be_named() -> None:
    """Of a short operation; a longer one names them."""
    long = "one (1.3 s), two (1.0 s), images.pull (0.19 s); 1.5 s more: working on a processor"
    for length, said in ((400, "one (0.13 s), two (0.10 s)"), (4000, long)):
        pull = Pull(length, unpacks=False)
        scale = length / 400
        pull.add("one", 0, 130 * scale, pull.pull)
        pull.add("two", 130 * scale, 230 * scale, pull.pull)
        pull.add("diff.unpack", 230 * scale, 381 * scale, pull.pull, splitd__time__cpu_ms=151 * scale)
        assert judge(pull.trace()).sentence.endswith(f": not recorded, in {said}")


def test_a_cancelled_pull() -> None:
    """So it was."""
    spans = Spans()
    spans.add("Transfer", 0, 9000, splitd__operation="pull", splitd__outcome="cancelled")
    assert judge(spans.trace()).sentence == "cancelled after 9.0 s; 9.0 of 9.0 s: not recorded, in Transfer"


def test_a_token_that_another_pull_gets() -> None:
    """It is the token server's matter, not the other pull's."""
    other = Spans(OTHER)
    auth = other.add("registry.auth", 0, 2000, server__address="token.example")
    pull = Pull(2500, unpacks=False)
    pull.add("wait.lock", 0, 2000, pull.pull, link=f"{OTHER}-{auth}")
    verdict = judge(pull.trace(), [other.trace()])
    assert (verdict.causes[0].kind, verdict.causes[0].part) == (Kind.REGISTRY, "auth")
    assert verdict.causes[0].host == "token.example"


def test_an_empty_trace_is_refused_and_an_empty_root_is_not() -> None:
    """A root without time has no causes."""
    spans = Spans()
    with pytest.raises(ValueError, match="has no span"):
        judge(spans.trace())
    spans.add("Transfer", 5, 5)
    assert judge(spans.trace()).causes == ()


def test_names_from_outside_are_cut() -> None:
    """A host of a megabyte makes no sentence of a megabyte."""
    pull = Pull(1000, unpacks=False, container__image__name="i" * 10**6)
    pull.fetched(0, 0, 800, 1000, 1, host="h" * 10**6)
    verdict = judge(pull.trace())
    assert len(verdict.sentence + verdict.advice + verdict.image) < 2000
