"""gateway.operations: which calls are one operation, when it ends, and what its root says; with a clock that only the
tests move.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest

from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.leases.v1 import leases_pb2
from api.containerd.services.tasks.v1 import tasks_pb2
from gateway import operation as limits
from gateway import operations
from gateway.operation import union
from gateway.operations import Operations
from services.kit import metrics, tracing
from services.kit.observer import Observed
from services.kit.spans import SERVER, Span

SECOND = 1_000_000_000
MS = 1_000_000
CONTAINERS = "/containerd.services.containers.v1.Containers"
CONTENT = "/containerd.services.content.v1.Content"
IMAGES = "/containerd.services.images.v1.Images"
LEASES = "/containerd.services.leases.v1.Leases"
SNAPSHOTS = "/containerd.services.snapshots.v1.Snapshots"
TASKS = "/containerd.services.tasks.v1.Tasks"


class Root:
    """A root span."""

    def __init__(self, name: str, start: int) -> None:
        self.name, self.start = name, start
        self.finished: int | None = None
        self.failure: tuple[int, str] | None = None
        self.attributes: dict[str, Any] = {}
        self.children: list[tuple[str, int, int]] = []

    def set(self, **attributes: Any) -> None:
        self.attributes |= attributes

    def default(self, **attributes: Any) -> None:
        self.attributes = attributes | self.attributes

    def get(self, name: str) -> Any:
        return self.attributes.get(name)

    def rename(self, name: str) -> None:
        self.name = name

    def status(self, code: int, message: str) -> None:
        self.failure = code, message

    def end(self, at: int = 0) -> None:
        assert self.finished is None, "ended twice"
        self.finished = at

    def covered(self) -> float:
        """The part of its time that its children cover."""
        assert self.finished is not None
        covered, at = 0, self.start
        for _, start, end in sorted(self.children, key=lambda child: child[1]):
            covered += max(0, end - max(start, at))
            at = max(at, end)
        return covered / ((self.finished - self.start) or 1)


class Call:
    """A call under way, as the transport has it."""

    inside = True

    def __init__(self, tracer: Tracer, method: str, root: Root | None) -> None:
        self.tracer, self.method, self.root = tracer, method, root
        self.begun = tracer.time

    def headers(self) -> tuple[tuple[str, str], ...]:
        return ()

    def enter(self) -> None:
        """Nothing to enter."""

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        if self.root is not None:
            self.root.children.append((self.method, self.begun, self.tracer.time))

    def left(self, size: int = 0) -> None:
        self.ended(1)


class Tracer:
    """Roots, and the clock."""

    on = True

    def __init__(self, *, lucky: bool) -> None:
        self.lucky = lucky
        """Whether what only asks is recorded."""
        self.time = 1000 * SECOND
        self.roots: list[Root] = []
        self.unrecorded: list[str] = []
        self.waits: list[tuple[str, str, dict[str, Any]]] = []
        """Waits for a known span."""

    def enabled(self) -> bool:
        return self.on

    def chance(self) -> bool:
        return self.lucky

    def fold(self) -> int:
        return 5 * MS

    def now(self) -> int:
        return self.time

    def root(self, name: str, start: int = 0) -> Root:
        self.roots.append(Root(name, start))
        return self.roots[-1]

    def recorded(self, name: str, start: int, end: int, ref: str = "", *, parent: Root, **attributes: Any) -> None:
        parent.children.append((name, start, end))
        if ref:
            self.waits.append((name, ref, attributes))

    def began(self, side: str, method: str, headers: Mapping[str, Any], parent: Any = None) -> Call:
        if parent is None:
            self.unrecorded.append(method)
        return Call(self, method, parent)

    def pass_(self, nanoseconds: int) -> None:
        self.time += nanoseconds

    def names(self) -> list[str]:
        return [root.name for root in self.roots if root.finished is not None]


class Edge:
    """The operations under test, and calls to them."""

    def __init__(self, *, lucky: bool = False, roots: float = 1000) -> None:
        self.tracer = Tracer(lucky=lucky)
        self.operations = Operations(cast("Any", self.tracer), roots=roots, began=cast("Any", self.tracer.began))

    def begin(
        self,
        connection: object,
        method: str,
        request: Any = None,
        *,
        lease: str = "",
        headers: Mapping[str, str] = {},
        side: Any = "relay",
    ) -> Observed:
        sent = {"containerd-namespace": "default", **({"containerd-lease": lease} if lease else {}), **headers}
        data = b"" if request is None else request.SerializeToString()
        return self.operations.began(connection, side, method, sent, data[:251])

    def call(self, connection: object, method: str, request: Any = None, *, code: int = 0, **more: Any) -> None:
        """A call of a millisecond, and a tenth of one until the next."""
        call = self.begin(connection, method, request, **more)
        self.tracer.pass_(MS)
        call.ended(code, "it failed" if code else "")
        self.tracer.pass_(MS // 10)

    def run(self, connection: object, name: str) -> Observed:
        """What ctr run does up to the wait for its task, which goes on."""
        lease = f"lease of {name}"
        self.call(connection, f"{LEASES}/Create", leases_pb2.CreateRequest(id=lease))
        self.call(connection, f"{SNAPSHOTS}/Prepare", lease=lease, side="server")
        self.call(connection, f"{CONTAINERS}/Create", container(name), lease=lease)
        self.call(connection, f"{LEASES}/Delete", leases_pb2.DeleteRequest(id=lease))
        self.call(connection, f"{TASKS}/Create", tasks_pb2.CreateTaskRequest(container_id=name))
        waiting = self.begin(connection, f"{TASKS}/Wait", tasks_pb2.WaitRequest(container_id=name))
        self.call(connection, f"{TASKS}/Start", tasks_pb2.StartRequest(container_id=name))
        return waiting


def container(name: str) -> containers_pb2.CreateContainerRequest:
    return containers_pb2.CreateContainerRequest(container=containers_pb2.Container(id=name, image="busybox"))


def test_a_command_is_one_operation() -> None:
    """All calls of a connection have one root, which lasts from the first to the last, and says what it was about."""
    edge = Edge()
    begun = edge.tracer.time
    waiting = edge.run("ctr", "a")
    edge.tracer.pass_(3600 * SECOND)  # while it runs, whatever the sweeps find
    edge.operations.sweep()
    assert edge.tracer.names() == []
    waiting.ended()
    edge.call("ctr", f"{TASKS}/Delete", tasks_pb2.DeleteTaskRequest(container_id="a"))
    ended = edge.tracer.time - MS // 10
    edge.tracer.pass_(SECOND)
    edge.operations.left("ctr")
    (root,) = edge.tracer.roots
    assert (root.name, root.start, root.finished) == ("run", begun, ended)
    assert root.attributes["splitd.outcome"] == "ok"
    assert root.attributes["splitd.namespace"] == "default"
    assert root.attributes["container.id"] == "a"
    assert len(edge.operations) == 0
    assert edge.tracer.unrecorded == []


def test_a_daemon_has_several_operations() -> None:
    """Once calls about two containers are under way, each container is an operation, and so is each other call; the
    waits of a daemon keep no operation open.
    """
    edge = Edge()
    first = edge.run("dockerd", "a")
    second = edge.run("dockerd", "b")
    edge.call("dockerd", f"{IMAGES}/Delete", images_pb2.DeleteImageRequest(name="old"))
    assert edge.tracer.names() == ["delete"]
    edge.call("dockerd", f"{TASKS}/Exec", tasks_pb2.ExecProcessRequest(container_id="b"))
    edge.tracer.pass_(int((operations.IDLE + 1) * SECOND))
    edge.operations.sweep()
    assert sorted(edge.tracer.names()) == ["delete", "run", "run"]
    of = {root.attributes.get("container.id"): {method for method, *_ in root.children} for root in edge.tracer.roots}
    assert f"{TASKS}/Exec" in of["b"] - of["a"]
    first.ended()
    second.ended()
    edge.operations.left("dockerd")
    assert len(edge.operations) == 0


@pytest.mark.parametrize("subscribes", [True, False])
def test_a_daemon_that_waits_for_nothing_has_several_operations(subscribes: bool) -> None:
    """dockerd learns of exits by events. It keeps a lease for each container, and creates one after the other."""
    edge = Edge()
    if subscribes:
        edge.begin("dockerd", "/containerd.services.events.v1.Events/Subscribe", side="server")
    for name in ("a", "b"):
        edge.call("dockerd", f"{LEASES}/Create", leases_pb2.CreateRequest(id=f"lease of {name}"))
        edge.call("dockerd", f"{CONTAINERS}/Create", container(name))
        edge.call("dockerd", f"{TASKS}/Create", tasks_pb2.CreateTaskRequest(container_id=name))
        edge.call("dockerd", f"{TASKS}/Start", tasks_pb2.StartRequest(container_id=name))
    edge.call("dockerd", f"{IMAGES}/Delete", images_pb2.DeleteImageRequest(name="old"))
    edge.tracer.pass_(int((operations.PATIENCE + 1) * SECOND))
    edge.operations.sweep()
    runs = [root.attributes["container.id"] for root in edge.tracer.roots if root.name == "run"]
    assert runs == ["a", "b"]
    assert "delete" in edge.tracer.names()
    edge.operations.left("dockerd")
    assert len(edge.operations) == 0


def test_a_lease_is_one_operation_by_whatever_connections() -> None:
    edge = Edge()
    edge.call("one", f"{LEASES}/Create", leases_pb2.CreateRequest(id="l"))
    edge.call("two", f"{CONTENT}/Write", lease="l", side="server")
    edge.call("two", f"{CONTENT}/Info", lease="l")
    edge.operations.left("two")
    edge.operations.left("one")
    assert len(edge.tracer.roots) == 1
    assert len([child for child in edge.tracer.roots[0].children if child[0] != "wait.client"]) == 3


def test_leases_one_after_the_other_are_one_command() -> None:
    """nerdctl run pulls under one lease, and creates the container under the next."""
    edge = Edge()
    for name in ("pull", "create"):
        edge.call("nerdctl", f"{LEASES}/Create", leases_pb2.CreateRequest(id=name))
        edge.call("nerdctl", f"{CONTENT}/Write", lease=name, side="server")
        edge.call("nerdctl", f"{LEASES}/Delete", leases_pb2.DeleteRequest(id=name))
    edge.operations.left("nerdctl")
    assert len(edge.tracer.roots) == 1


def test_a_client_at_work_elsewhere_is_waited_for() -> None:
    """The client resolves a name for a minute while it holds a lease: the operation stays open, and the time is a wait
    for the client. Without a lease it is over sooner.
    """
    edge = Edge()
    edge.call("ctr", f"{LEASES}/Create", leases_pb2.CreateRequest(id="l"))
    edge.tracer.pass_(60 * SECOND)
    edge.operations.sweep()
    edge.call("ctr", f"{IMAGES}/Create", image("busybox"), lease="l")
    edge.call("ctr", f"{LEASES}/Delete", leases_pb2.DeleteRequest(id="l"))
    edge.tracer.pass_(int((operations.IDLE + 1) * SECOND))
    edge.operations.sweep()
    (root,) = edge.tracer.roots
    assert [name for name, start, end in root.children if end - start > 59 * SECOND] == ["wait.client"]
    assert root.finished == edge.tracer.time - int((operations.IDLE + 1) * SECOND) - MS // 10
    edge.call("ctr", f"{IMAGES}/Create", image("busybox"))
    assert len(edge.tracer.roots) == 2


def image(name: str) -> images_pb2.CreateImageRequest:
    made = images_pb2.CreateImageRequest()
    made.image.name = name
    made.image.labels["some"] = "label"
    made.image.target.digest = "sha256:abc"
    return made


def test_short_gaps_count_as_far_as_they_are_needed() -> None:
    """The spans below a root cover nearly all of its time, though every gap is shorter than what is worth a span."""
    edge = Edge()
    for _ in range(40):
        edge.call("ctr", f"{IMAGES}/Create", image("a"))
        edge.tracer.pass_(MS)
    edge.operations.left("ctr")
    assert edge.tracer.roots[0].covered() >= 0.95


class RealTracer(Tracer):
    """With the spans of a process, by the tests' clock."""

    def __init__(self) -> None:
        super().__init__(lucky=True)
        self.kept: list[Span] = []
        tracing.setup(self.kept.append, fold=0.005)

    def root(self, name: str, start: int = 0) -> Any:
        return tracing.root(name, start)

    def recorded(self, *about: Any, **more: Any) -> None:
        tracing.recorded(*about, **more)

    def began(self, side: str, method: str, headers: Mapping[str, Any], parent: Any = None) -> Call:
        return RealCall(self, method, parent)


class RealCall(Call):
    def __init__(self, tracer: Tracer, method: str, root: Any) -> None:
        self.tracer, self.outer = tracer, Span(method, SERVER, root, tracer.time)
        self.outer.keep()

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        self.outer.end(self.tracer.time)


@pytest.fixture
def real() -> Iterator[tuple[Edge, list[Span]]]:
    edge, tracer = Edge(), RealTracer()
    edge.tracer, edge.operations = tracer, Operations(cast("Any", tracer), began=cast("Any", tracer.began))
    yield edge, tracer.kept
    tracing.reset()


@pytest.mark.parametrize(("work", "at_least", "at_most"), [(5000, 0, 5), (0, 90, 100)])
def test_short_questions_are_spans_as_far_as_they_are_needed(
    work: int, at_least: int, at_most: int, real: tuple[Edge, list[Span]]
) -> None:
    """A command that mostly works has few of them, and one that hardly does has nearly all; the root counts the
    others. Either way they cover its time.
    """
    edge, kept = real
    for _ in range(50):
        edge.call("ctr", f"{IMAGES}/Get")
    call = edge.begin("ctr", f"{IMAGES}/Create")
    edge.tracer.pass_(work * MS)
    call.ended()
    for _ in range(50):
        edge.call("ctr", f"{IMAGES}/Get")
    edge.operations.left("ctr")
    root = kept.pop()
    assert union([(span.start, span.over) for span in kept]) >= 0.95 * (root.over - root.start)
    questions = [span for span in kept if span.name.endswith("/Get")]
    assert at_least <= len(questions) <= at_most
    assert root.folded == 100 - len(questions)
    assert {span.above for span in kept} == {root.id}


def test_what_a_root_says_of_a_pull() -> None:
    """Its name and outcome are inferred; what another process has said stays."""
    edge = Edge()
    edge.call("ctr", f"{LEASES}/Create", leases_pb2.CreateRequest(id="l"))
    writing = edge.begin("ctr", f"{CONTENT}/Write", lease="l", side="server")
    current = limits.CURRENT.get()
    assert current is not None
    current.wrote("layer-sha256:abc")
    current.came += 100
    current.root.set(**{"splitd.layers": 7})
    writing.ended()
    edge.call("ctr", f"{SNAPSHOTS}/Commit", lease="l", side="server")
    edge.call("ctr", f"{IMAGES}/Create", image("busybox"), code=6, lease="l")
    edge.call("ctr", f"{IMAGES}/Update", image("busybox"), lease="l")
    edge.operations.left("ctr")
    (root,) = edge.tracer.roots
    assert root.name == "pull"
    wanted = {
        "splitd.operation": "pull",
        "splitd.outcome": "ok",
        "container.image.name": "busybox",
        "oci.manifest.digest": "sha256:abc",
        "splitd.bytes": 100,
        "splitd.layers": 7,
    }
    assert {name: root.attributes.get(name) for name in wanted} == wanted
    assert root.failure is None


@pytest.mark.parametrize(
    ("end", "outcome"),
    [("deletes its lease", "failed"), ("is killed", "cancelled"), ("is killed in a call", "cancelled")],
)
def test_a_pull_that_made_no_image(end: str, outcome: str) -> None:
    edge = Edge()
    edge.call("ctr", f"{LEASES}/Create", leases_pb2.CreateRequest(id="l"))
    writing = edge.begin("ctr", f"{CONTENT}/Write", lease="l", side="server")
    current = limits.CURRENT.get()
    assert current is not None
    current.wrote("layer-sha256:abc")
    if end == "is killed in a call":
        edge.operations.left("ctr")
        assert edge.tracer.names() == []
        writing.ended(1, "cancelled")
    else:
        writing.ended()
        if end == "deletes its lease":
            edge.call("ctr", f"{LEASES}/Delete", leases_pb2.DeleteRequest(id="l"))
        edge.operations.left("ctr")
    (root,) = edge.tracer.roots
    assert (root.name, root.attributes["splitd.outcome"]) == ("pull", outcome)
    assert (root.failure is not None) is (outcome == "failed")


def test_a_transfer_of_what_is_not_there_has_failed_with_its_message() -> None:
    """Other calls may end with NOT_FOUND, which is no failure of a span."""
    edge = Edge()
    edge.call("splitd", f"{LEASES}/Create", leases_pb2.CreateRequest(id="l"))
    edge.call("splitd", "/containerd.services.transfer.v1.Transfer/Transfer", code=5)
    edge.call("splitd", f"{LEASES}/Delete", leases_pb2.DeleteRequest(id="l"))
    edge.operations.left("splitd")
    (root,) = edge.tracer.roots
    assert (root.attributes["splitd.outcome"], root.failure) == ("failed", (2, "it failed"))


def test_a_run_whose_task_cannot_be_created_has_failed() -> None:
    """What the client cleans up after it does not hide this."""
    edge = Edge()
    edge.call("ctr", f"{CONTAINERS}/Create", container("a"))
    edge.call("ctr", f"{TASKS}/Create", tasks_pb2.CreateTaskRequest(container_id="a"), code=2)
    edge.call("ctr", f"{CONTAINERS}/Delete", containers_pb2.DeleteContainerRequest(id="a"))
    edge.operations.left("ctr")
    (root,) = edge.tracer.roots
    assert (root.name, root.attributes["splitd.outcome"], root.failure) == ("run", "failed", (2, "it failed"))


def test_a_client_that_waits_for_another_writer() -> None:
    """It makes no call meanwhile, but it is not what was waited for."""
    edge = Edge()
    writing = edge.begin("ctr", f"{CONTENT}/Write", side="server")
    current = limits.CURRENT.get()
    assert current is not None
    current.blocked = "another writer of layer-1", "trace-span"
    writing.ended(14, "ref layer-1 locked")
    edge.tracer.pass_(SECOND)
    edge.call("ctr", f"{CONTENT}/Write", side="server")
    edge.tracer.pass_(SECOND)
    edge.call("ctr", f"{CONTENT}/Info", side="server")
    edge.operations.left("ctr")
    (root,) = edge.tracer.roots
    waits = sorted((start, name) for name, start, end in root.children if end - start >= SECOND)
    assert [name for _, name in waits] == ["wait.lock", "wait.client"]
    assert edge.tracer.waits == [("wait.lock", "trace-span", {"splitd.wait.for": "another writer of layer-1"})]


def test_questions_are_sampled() -> None:
    """A client that only asks is recorded as a whole, or not at all; one that changes something always is."""
    edge = Edge()
    for connection in range(10):
        for _ in range(3):
            edge.call(connection, f"{IMAGES}/List")
    assert edge.tracer.roots == []
    assert len(edge.tracer.unrecorded) == 30
    edge.call(3, f"{IMAGES}/Delete", images_pb2.DeleteImageRequest(name="old"))
    edge.call(3, f"{IMAGES}/List")
    for connection in range(10):
        edge.operations.left(connection)
    assert edge.tracer.names() == ["delete"]
    assert len(edge.tracer.roots[0].children) == 2 + 1  # and the gap

    edge = Edge(lucky=True)
    for _ in range(3):
        edge.call("ctr", f"{IMAGES}/List")
    edge.operations.left("ctr")
    assert edge.tracer.names() == ["Images.List"]
    assert edge.tracer.unrecorded == []


def test_a_client_that_asks_for_ever_is_recorded_for_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has one connection, and is never idle. One decision in twenty is lucky."""
    edge, turns = Edge(), itertools.count()
    monkeypatch.setattr(edge.tracer, "chance", lambda: next(turns) % 20 == 0)
    for _ in range(20_000):
        edge.call("monitor", f"{TASKS}/Get", tasks_pb2.GetRequest(container_id="a"))
        edge.tracer.pass_(50 * MS)
    share = 1 - len(edge.tracer.unrecorded) / 20_000
    assert 0.03 < share < 0.08
    assert len(edge.tracer.roots) > 30


def test_streams_that_accompany_a_transfer_have_no_spans() -> None:
    edge = Edge(lucky=True)
    streaming = edge.begin("ctr", "/containerd.services.streaming.v1.Streaming/Stream")
    edge.call("ctr", "/containerd.services.transfer.v1.Transfer/Transfer")
    streaming.ended()
    edge.operations.left("ctr")
    assert edge.tracer.names() == ["Transfer.Transfer"]
    assert edge.tracer.unrecorded == ["/containerd.services.streaming.v1.Streaming/Stream"]


@pytest.mark.parametrize(
    ("methods", "name"),
    [
        ("Leases.Create Content.Write Images.Create Images.Delete Leases.Delete", "Content.Write"),
        ("Leases.Create Leases.Delete", "Leases.Create"),
        ("Leases.Delete", "delete"),
        ("Containers.Get Containers.Delete Snapshots.Remove", "delete"),
        ("Leases.Create Diff.Diff Content.Write Images.Update", "commit"),
        ("Tasks.Get Tasks.Kill", "kill"),
        ("Namespaces.Create", "Namespaces.Create"),
    ],
)
def test_names(methods: str, name: str) -> None:
    """What a client makes says more than what it deletes on the way, and leases say least."""
    edge = Edge(lucky=True)
    for method in methods.split():
        service, _, verb = method.partition(".")
        edge.call("client", f"/containerd.services.{service.lower()}.v1.{service}/{verb}")
    edge.operations.left("client")
    assert edge.tracer.names() == [name]


def test_a_root_is_named_while_it_is_open() -> None:
    """Those who look at what is in flight see what it is, as far as it is known; what a process has told stays."""
    edge = Edge()
    edge.call("ctr", f"{LEASES}/Create", leases_pb2.CreateRequest(id="l"))
    (root,) = edge.tracer.roots
    assert (root.name, root.attributes["splitd.operation"]) == ("Leases.Create", "Leases.Create")
    edge.call("ctr", f"{CONTAINERS}/Create", container("a"), lease="l")
    assert (root.name, root.attributes["container.id"], root.finished) == ("create", "a", None)
    root.set(**{"splitd.operation": "told", "container.image.name": "told"})
    edge.call("ctr", f"{TASKS}/Create", tasks_pb2.CreateTaskRequest(container_id="a"))
    edge.operations.left("ctr")
    assert (root.name, root.attributes["container.image.name"]) == ("told", "told")


def test_a_client_with_a_trace_is_continued() -> None:
    """It is joined with nothing, and has no root of ours."""
    edge = Edge()
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    edge.call("kubelet", f"{IMAGES}/Create", image("a"), headers=trace)
    assert edge.tracer.roots == []
    assert edge.tracer.unrecorded == [f"{IMAGES}/Create"]


def test_roots_are_bounded() -> None:
    """A client that makes a connection for each change gets no more roots than the bound; so does one whose operations
    never end. The metrics say how many have none.
    """
    edge = Edge(roots=10)
    metrics.begin()
    try:
        for connection in range(100):
            edge.call(connection, f"{IMAGES}/Delete", images_pb2.DeleteImageRequest(name="a"))
            edge.operations.left(connection)
        [unrecorded] = operations._UNRECORDED.family().samples
    finally:
        metrics.end()
    assert 20 <= len(edge.tracer.roots) < 30
    assert unrecorded.value == 100 - len(edge.tracer.roots)


def test_an_operation_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that never stops has several traces, each of a bounded number of calls."""
    monkeypatch.setattr(limits, "CALLS", 10)
    edge = Edge()
    waiting = [edge.begin("loop", f"{IMAGES}/Delete") for _ in range(25)]
    for call in waiting:
        call.ended()
    edge.operations.left("loop")
    assert [len(root.children) for root in edge.tracer.roots] == [10, 10, 5]
    assert len(edge.operations) == 0


def test_nothing_is_kept_of_those_that_left() -> None:
    edge = Edge(lucky=True)
    for connection in range(200):
        edge.run(connection, f"container {connection}").ended()
        edge.call(connection, f"{IMAGES}/List")
        edge.operations.left(connection)
    assert len(edge.operations) == 0
    assert edge.operations._connections == {}
    assert edge.operations._leases == {}
    assert len(edge.tracer.names()) == 200


def test_without_connections_containers_and_leases_are_joined() -> None:
    """As over grpcio, which does not tell connections apart."""
    edge = Edge()
    edge.call(None, f"{CONTENT}/Write", lease="l", side="server")
    edge.call(None, f"{CONTENT}/Write", lease="l", side="server")
    edge.call(None, f"{CONTENT}/Delete", side="server")
    edge.tracer.pass_(10 * SECOND)
    edge.operations.sweep()
    assert sorted(edge.tracer.names()) == ["Content.Write", "delete"]


def test_nothing_is_decided_while_tracing_is_off() -> None:
    edge = Edge(lucky=True)
    edge.tracer.on = False
    edge.call("ctr", f"{IMAGES}/Delete")
    assert (edge.tracer.roots, edge.operations._connections) == ([], {})


def test_an_operation_that_is_over_gets_no_call_of_another_connection() -> None:
    """A lease's operation has calls of two connections, and one of them, a daemon's, names a container. Once the
    operation is over, that container's next call there is another operation.
    """
    edge = Edge()
    waiting = edge.run("dockerd", "a"), edge.run("dockerd", "b")
    edge.call("ctr", f"{LEASES}/Create", leases_pb2.CreateRequest(id="l"))
    edge.call("dockerd", f"{CONTAINERS}/Create", container("c"), lease="l")
    edge.call("ctr", f"{LEASES}/Delete", leases_pb2.DeleteRequest(id="l"))
    edge.operations.left("ctr")
    began = len(edge.tracer.roots)
    assert edge.tracer.roots[-1].finished is not None
    edge.call("dockerd", f"{TASKS}/Create", tasks_pb2.CreateTaskRequest(container_id="c"))
    assert len(edge.tracer.roots) == began + 1
    for each in waiting:
        each.ended()
    edge.tracer.pass_(int((operations.IDLE + 1) * SECOND))
    edge.operations.sweep()
    assert len(edge.operations) == 0
    assert not edge.operations._connections["dockerd"].containers
