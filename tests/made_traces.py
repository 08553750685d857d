"""Made-up traces for the page: an ordinary pull, one with whatever somebody may send, and a large one."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace

from services.shadows.store import Difference, Example, Latency, MethodReport, Report, Shadow
from services.traces.live import OpenSpans
from services.traces.memory import MemoryStore
from services.traces.page.node_source import NodeSource
from services.traces.page.source import Node, Process, Registry
from services.traces.store import Event, Kind, Link, Query, Span, Status, Summary, Trace, Value

MS = 1_000_000
REGISTRY = "registry.internal:5000"
MARKUP = "<img src=x onerror=\"document.title='injected'\"><script>document.title='injected'</script>"


class Spans:
    """Collects the spans of a trace. Times are milliseconds since its beginning."""

    def __init__(self, trace: str, began: int) -> None:
        self.trace = trace
        self.began = began
        self.spans: list[Span] = []

    def add(
        self,
        parent: Span | None,
        name: str,
        service: str,
        start: float,
        end: float,
        attributes: dict[str, Value] | None = None,
        *,
        holder: Span | None = None,
        **more: object,
    ) -> Span:
        links = (Link(holder.trace, holder.id),) if holder is not None else ()
        made = Span(
            self.trace,
            f"{len(self.spans) + 1:016x}",
            parent.id if parent is not None else "",
            name,
            f"splitd-{service}",
            self.began + round(start * MS),
            self.began + round(end * MS),
            attributes=attributes or {},
            links=links,
        )
        made = replace(made, **more)  # type: ignore[arg-type]
        self.spans.append(made)
        return made

    def call(self, parent: Span, service: str, method: str, start: float, end: float) -> Span:
        """A call from the images service through the gateway."""
        package, _, name = method.rpartition("/")
        about: dict[str, Value] = {"rpc.system": "grpc", "rpc.service": package, "rpc.method": name}
        for number, (process, kind) in enumerate(
            (("images", Kind.CLIENT), ("gateway", Kind.SERVER), ("gateway", Kind.CLIENT), (service, Kind.SERVER))
        ):
            parent = self.add(parent, method, process, start + number * 0.2, end - number * 0.2, about, kind=kind)
        return parent

    def made(self) -> Trace:
        return Trace(self.trace, tuple(sorted(self.spans, key=lambda span: span.start)))


def pull(
    trace: str,
    began: int,
    *,
    image: str = f"{REGISTRY}/team/app:1.4",
    rate: float = 14.0,
    layers: Sequence[float] = (28.0, 3.1, 61.0, 11.4, 5.6, 84.0),
    outcome: str = "ok",
) -> Trace:
    """A pull whose layers (in MiB) come at ``rate`` MiB/s, three at a time, and are unpacked as they come."""
    s = Spans(trace, began)
    lanes = [260.0, 270.0, 280.0]
    times: list[tuple[float, float]] = []
    for size in layers:
        lane = min(range(3), key=lanes.__getitem__)
        begin = lanes[lane]
        lanes[lane] = begin + 40 + size / rate * 3 * 1000
        times.append((begin, lanes[lane]))
    last = max(end for _, end in times)
    end = last + 420
    package = "containerd.services.transfer.v1.Transfer/Transfer"
    rpc: dict[str, Value] = {
        "rpc.system": "grpc",
        "rpc.service": "containerd.services.transfer.v1.Transfer",
        "rpc.method": "Transfer",
    }
    total = int(sum(layers) * (1 << 20))
    root = s.add(
        None,
        package,
        "gateway",
        0,
        end,
        {
            **rpc,
            "splitd.operation": "pull",
            "splitd.namespace": "default",
            "container.image.name": image,
            "oci.manifest.digest": "sha256:" + "9f" * 32,
            "splitd.snapshotter": "overlayfs",
            "splitd.bytes": total,
            "splitd.bytes.present": 0,
            "splitd.layers": len(layers),
            "splitd.layers.present": 0,
            "splitd.outcome": outcome,
        },
        kind=Kind.SERVER,
        status=Status.ERROR if outcome == "failed" else Status.UNSET,
        message="registry.internal:5000 answers 503 Service Unavailable" if outcome == "failed" else "",
    )
    hop = s.add(root, package, "gateway", 0.4, end - 0.4, rpc, kind=Kind.CLIENT)
    served = s.add(hop, package, "images", 0.8, end - 0.8, rpc, kind=Kind.SERVER)
    whole = s.add(served, "images.pull", "images", 1, end - 1)
    resolve = s.add(whole, "registry.resolve", "images", 2, 250)
    host: dict[str, Value] = {"server.address": REGISTRY}
    request = s.add(
        resolve,
        "registry.request",
        "images",
        3,
        90,
        {
            **host,
            "http.request.method": "HEAD",
            "url.path": "/v2/team/app/manifests/1.4",
            "http.response.status_code": 401,
        },
    )
    s.add(request, "registry.dns", "images", 3, 9, host)
    s.add(request, "registry.connect", "images", 9, 31, host)
    s.add(request, "registry.tls", "images", 31, 66, host)
    s.add(request, "registry.first_byte", "images", 66, 90, host)
    s.add(resolve, "registry.auth", "images", 91, 170, host)
    request = s.add(
        resolve,
        "registry.request",
        "images",
        171,
        249,
        {**host, "http.request.method": "GET", "http.response.status_code": 200, "splitd.registry.request_id": "b3c1"},
    )
    s.add(request, "registry.first_byte", "images", 171, 240, host)
    s.add(request, "registry.transfer", "images", 240, 249, host)
    unpack = s.add(whole, "images.unpack", "images", 262, end - 3)
    done = 262.0
    for number, (size, (start, stop)) in enumerate(zip(layers, times, strict=True)):
        digest = f"sha256:{number:064x}"
        about: dict[str, Value] = {
            "oci.layer.digest": digest,
            "splitd.layer": number,
            "splitd.size": int(size * (1 << 20)),
        }
        layer = s.add(whole, "images.layer", "images", 262, stop + 12, about)
        if start > 300:
            s.add(layer, "wait.budget", "images", 262, start, {"splitd.wait.for": "a place among 3 layers at once"})
        fetch = s.add(
            layer,
            "registry.fetch",
            "images",
            start,
            stop,
            {**host, "splitd.bytes": int(size * (1 << 20)), "splitd.bytes_ms": round((stop - start) * 0.9)},
        )
        request = s.add(fetch, "registry.request", "images", start, stop, {**host, "http.response.status_code": 200})
        s.add(request, "registry.first_byte", "images", start, start + 36, host)
        s.add(
            request,
            "registry.transfer",
            "images",
            start + 36,
            stop - 1,
            {**host, "splitd.bytes": int(size * (1 << 20))},
        )
        s.call(layer, "content", "containerd.services.content.v1.Content/Info", stop, stop + 3)
        commit = s.add(layer, "content.commit", "content", stop + 3, stop + 12, {"oci.layer.digest": digest})
        s.add(commit, "content.fsync", "content", stop + 4, stop + 11)
        one = s.add(unpack, "unpack.layer", "images", 262, max(stop + 30, done + 20), about)
        s.add(
            one,
            "wait.bytes",
            "images",
            262,
            start + 49,
            {"splitd.wait.for": f"the beginning of layer {number + 1}"},
            holder=layer,
        )
        s.call(one, "snapshots", "containerd.services.snapshots.v1.Snapshots/Prepare", start + 50, start + 54)
        finish = stop + 22
        apply = s.add(one, "diff.apply", "snapshots", start + 56, finish, about)
        length = finish - start - 60
        worker = s.add(
            apply,
            "diff.unpack",
            "snapshots",
            start + 58,
            finish - 2,
            {
                **about,
                "splitd.time.cpu_ms": round(length * 0.16),
                "splitd.time.inflate_ms": round(length * 0.1),
                "splitd.time.runqueue_ms": round(length * 0.02),
                "splitd.time.disk_ms": round(length * 0.04),
                "splitd.time.bytes_ms": round(length * 0.78),
            },
        )
        s.add(
            worker,
            "wait.bytes",
            "snapshots",
            start + 60,
            stop - 2,
            {"splitd.wait.for": f"bytes of layer {number + 1} from {REGISTRY}"},
            holder=fetch,
        )
        if done > finish:
            s.add(
                one, "wait.parent", "images", finish + 1, done, {"splitd.wait.for": f"the snapshot of layer {number}"}
            )
        done = max(done, finish) + 8
        s.call(one, "snapshots", "containerd.services.snapshots.v1.Snapshots/Commit", done - 7, done)
    sync = s.add(unpack, "snapshots.sync", "snapshots", done, end - 5)
    s.add(sync, "wait.lock", "snapshots", done + 1, done + 60, {"splitd.wait.for": "the collection of 20:14"})
    s.add(whole, "events.publish", "images", end - 3, end + 40, {"splitd.background": True})
    return s.made()


def hostile(trace: str, began: int) -> Trace:
    """A trace whose every text is markup, with spans that are their own parents, and times without sense."""
    s = Spans(trace, began)
    root = s.add(
        None,
        MARKUP,
        f"{MARKUP}",
        0,
        900,
        {
            "container.image.name": MARKUP,
            "splitd.operation": MARKUP,
            "splitd.namespace": MARKUP,
            MARKUP: MARKUP,
            "nested": {"a": [MARKUP, b"\xff", None, float("nan"), 1 << 62]},
        },
        status=Status.ERROR,
        message=MARKUP,
        events=(Event(began, MARKUP, {MARKUP: MARKUP}),),
    )
    s.add(root, f"wait.{MARKUP}", MARKUP, 100, 500, {"splitd.wait.for": MARKUP})
    selfish = s.add(root, "selfish", "images", 200, 300)
    s.spans[-1] = replace(selfish, parent=selfish.id)
    s.add(root, "backwards", "images", 700, 600)
    one = s.add(root, "one", "images", 300, 400)
    two = s.add(one, "two", "images", 300, 400)
    s.spans[-2] = replace(one, parent=two.id)
    s.add(root, "orphan", "images", 400, 410)
    s.spans[-1] = replace(s.spans[-1], parent="f" * 16)
    s.add(root, "late", "images", 400, 410, links=(Link("c" * 32, "c" * 16), Link(trace, "c" * 16)))
    return s.made()


def large(trace: str, began: int, count: int = 5_000) -> Trace:
    """A trace of many spans, most of them short, from a fixed seed."""
    rng = random.Random(5)
    s = Spans(trace, began)
    names = ("images", "content", "snapshots", "metadata", "gateway")
    root = s.add(
        None,
        "import",
        "gateway",
        0,
        60_000,
        {"splitd.operation": "import", "container.image.name": "team/large:1", "splitd.outcome": "ok"},
    )
    groups = [s.add(root, f"step.{number}", "images", number * 600, number * 600 + 595) for number in range(100)]
    while len(s.spans) < count:
        group = rng.choice(groups)
        offset = (group.start - began) / MS + rng.uniform(0, 560)
        s.add(
            group,
            f"{rng.choice(('read', 'write', 'stat'))}.{len(s.spans)}",
            rng.choice(names),
            offset,
            offset + rng.expovariate(1 / 8),
        )
    return s.made()


class MadeSource(NodeSource):
    """What the page shows of a store in memory. ``asked`` are the queries that came, ``trouble`` is the node's."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.reports = OpenSpans()
        self.trouble = ""
        self.asked: list[Query] = []
        super().__init__(self.store, self.reports, self._made)

    async def keep(self, *traces: Trace) -> None:
        """Put traces into the store."""
        for trace in traces:
            await self.store.add(trace.spans)

    def running(self, *spans: Span) -> None:
        """These spans are open now; those of before have ended."""
        self.reports.report("images", 1, lambda: [replace(span, end=0) for span in spans], 60.0, 0)

    async def traces(self, query: Query) -> list[Summary]:
        self.asked.append(query)
        return await super().traces(query)

    async def _made(self) -> Node:
        began = time.time() - 7300
        names = ("gateway", "metadata", "content", "snapshots", "images", "tasks", "traces")
        return Node(
            [Process(name, "", 4200 + i, began, (31 + 3 * i) << 20, 12.5 * (i + 1)) for i, name in enumerate(names)],
            [
                Registry(f"https://{REGISTRY}", "good", began, 0, "", 14.2 * (1 << 20)),
                Registry("https://mirror.internal", "dead", began, 3, f"{MARKUP}: connection refused", 0.0),
            ],
            self.trouble,
            [shadowed()],
        )


def shadowed() -> Report:
    """A content store that reads other bytes, and whose total is one more."""
    differences = [
        Difference("status.total", 20, 0, 20, [Example("100", "101", "status.total", f"ref={MARKUP}", "a" * 32)]),
        Difference("data", 3, 0, 20, [Example("sha256:aa", "sha256:bb", "data", "digest=sha256:aa", "")]),
    ]
    method = MethodReport(
        "Content/Status",
        41,
        0,
        20,
        1,
        {"why": 20},
        Latency(41, 0.0007, 0.0013),
        Latency(20, 0.0006, 0.0014),
        differences,
    )
    return Report(Shadow("content", "/run/mine.sock", 100.0, True, 0.0, ""), [method])
