"""Introspection: the suite on the servicer and on Debian's containerd; the states of rows and their sources."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from api.containerd.services.introspection.v1 import introspection_pb2 as pb
from api.containerd.types.introspection_pb2 import RuntimeInfo, RuntimeRequest
from gateway.candidates import Candidate, Terms
from gateway.config import ProxyPlugin
from gateway.introspection import IntrospectionServicer, kept_uuid
from services.kit import errors, rpc
from services.kit.any import pack, unpack
from services.kit.rpc import Call
from services.kit.settings import Node
from services.snapshots.store import About
from tests.peer import containerd
from tests.suites import introspection as suite
from tests.support import short_directory

SNAPSHOTTERS = (
    About(
        "overlayfs", exports={"root": "/r/snapshots/overlayfs"}, capabilities=("remap-ids", "only-remap-ids", "rebase")
    ),
    About("native"),
)
CALL = Call("", {})


class Probe:
    """A probe that knows only which services are down."""

    def __init__(self, **down: str) -> None:
        self.down = down

    async def state(self, name: str, call: Call) -> tuple[bool, str]:
        return name not in self.down, self.down.get(name, "")


async def test_clients_may_use_of_a_snapshotter_what_its_candidates_have_too(place: Path) -> None:
    """Not rebase, where layers that were prepared apart could lie in different places. Other snapshotters have what
    they had.
    """
    overlay, native = (
        About(name, capabilities=("remap-ids", "rebase"), exports={}) for name in ("overlayfs", "native")
    )
    terms = Terms(route="snapshots.overlayfs", name="x", address="/x.sock", share=50.0, capabilities=("remap-ids",))
    stands = {"snapshots.overlayfs": [Candidate(terms)]}

    async def announced(call: Call) -> Sequence[About]:
        return (overlay, native)

    of = IntrospectionServicer(
        Node(place / "root", place / "state"), Probe(), announced, candidates=lambda route: stands.get(route, [])
    )

    async def capabilities() -> dict[str, set[str]]:
        found = await of.Plugins(pb.PluginsRequest(filters=["type==io.containerd.snapshotter.v1"]), CALL)
        return {row.id: set(row.capabilities) - {"remap-ids"} for row in found.plugins}

    assert await capabilities() == {"overlayfs": set(), "native": {"rebase"}}
    stands["snapshots.overlayfs"][0].drain("over")
    assert await capabilities() == {"overlayfs": {"rebase"}, "native": {"rebase"}}


def servicer(
    place: Path, probe: Probe | None = None, snapshotters: Sequence[About] = SNAPSHOTTERS, **proxies: ProxyPlugin
) -> IntrospectionServicer:
    async def announced(call: Call) -> Sequence[About]:
        return snapshotters

    return IntrospectionServicer(Node(place / "root", place / "state"), probe or Probe(), announced, proxies)


async def states(of: IntrospectionServicer) -> dict[str, tuple[int, str]]:
    """Return short type and id of each row that is not well, with its error."""
    return {
        f"{row.type.split('.')[2]} {row.id}": (row.init_err.code, row.init_err.message)
        for row in (await of.Plugins(pb.PluginsRequest(), CALL)).plugins
        if row.HasField("init_err")
    }


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.root
class TestServed(suite.NodeIntrospectionSuite):
    """The servicers in this process, over gRPC."""

    @pytest.fixture
    async def channel(self, place: Path) -> AsyncIterator[rpc.Channel]:
        async with rpc.serving(place / "i.sock", [servicer(place)]), rpc.Channel(place / "i.sock") as channel:
            yield channel


@pytest.fixture(scope="module")
def debian() -> Iterator[Path]:
    """The socket of Debian's containerd."""
    with short_directory() as directory, containerd(directory) as socket:
        yield socket


@pytest.mark.root
class TestContainerd(suite.IntrospectionSuite):
    """Debian's containerd, to check the suite itself."""

    @pytest.fixture
    async def channel(self, debian: Path) -> AsyncIterator[rpc.Channel]:
        async with rpc.Channel(debian) as channel:
            yield channel


@pytest.mark.root
async def test_a_service_that_is_down_shows_in_its_rows(place: Path) -> None:
    """They have UNAVAILABLE and the gateway's reason. Rows that do not need the service stay well, and all are well
    again when it is back.
    """
    probe = Probe(images="service images has been unreachable for 3.0 s")
    introspection = servicer(place, probe)
    trouble = (14, "service images has been unreachable for 3.0 s: unavailable")
    assert await states(introspection) == {
        "service images-service": trouble,
        "grpc images": trouble,
        "streaming manager": trouble,
        "transfer local": trouble,
        "grpc streaming": trouble,
        "grpc transfer": trouble,
        "image-verifier bindir": trouble,
    }
    probe.down.clear()
    assert await states(introspection) == {}


@pytest.mark.root
async def test_one_snapshotter_down_is_one_row(place: Path) -> None:
    """Each snapshotter has a health of its own."""
    introspection = servicer(place, Probe(**{"snapshots.native": "away"}))
    assert await states(introspection) == {"snapshotter native": (14, "away: unavailable")}


@pytest.mark.root
async def test_foreign_services_have_rows_of_their_own(place: Path) -> None:
    """They have the values of their configuration; a service that replaces ours gets its row."""
    stargz = ProxyPlugin(
        type="snapshot", address="/run/stargz.sock", exports={"root": "/var/lib/stargz"}, capabilities=("rebase",)
    )
    other = ProxyPlugin(type="snapshot", address="/run/o.sock", platform="linux/arm64/v8")
    introspection = servicer(
        place, stargz=stargz, native=other, store=ProxyPlugin(type="content", address="/run/c.sock")
    )
    found = {
        (row.type.split(".")[2], row.id): row
        for row in (await introspection.Plugins(pb.PluginsRequest(), CALL)).plugins
    }
    assert [name for kind, name in found if kind == "snapshotter"] == ["overlayfs", "native", "stargz"]
    assert [name for kind, name in found if kind == "content"] == ["store"]
    assert "rebase" in found["snapshotter", "overlayfs"].capabilities
    assert dict(found["snapshotter", "overlayfs"].exports) == {"root": "/r/snapshots/overlayfs"}
    row = found["snapshotter", "stargz"]
    assert (dict(row.exports), list(row.capabilities)) == (
        {"root": "/var/lib/stargz", "address": "/run/stargz.sock"},
        ["rebase"],
    )
    [platform] = found["snapshotter", "native"].platforms
    assert (platform.os, platform.architecture, platform.variant) == ("linux", "arm64", "v8")
    assert dict(found["snapshotter", "native"].exports) == {"address": "/run/o.sock"}


@pytest.mark.root
async def test_ids_are_mapped_by_mounts_where_the_shim_can(place: Path) -> None:
    """The shim is checked each time, since another may be installed while the node is up; one that ctr installed comes
    first. A foreign snapshotter reports its own capabilities.
    """
    other = ProxyPlugin(type="snapshot", address="/run/o.sock", capabilities=("remap-ids",))
    introspection = servicer(place, native=other)

    async def capabilities(name: str) -> list[str]:
        return list(
            (await introspection.Plugins(pb.PluginsRequest(filters=[f"id=={name}"]), CALL)).plugins[0].capabilities
        )

    for version, maps in (("v1.7.27", False), ("2.1.9+ds1", True), ("1.6.20~ds1", False), ("unknown", True)):
        program(
            place / "root/opt/bin/containerd-shim-runc-v2",
            f"#!/bin/sh\nprintf 'containerd-shim-runc-v2:\\n  Version:  {version}\\n  Revision: \\n'\n",
        )
        assert ("remap-ids" in await capabilities("overlayfs")) == maps, version
        assert "only-remap-ids" in await capabilities("overlayfs")
        assert await capabilities("native") == ["remap-ids"]


@pytest.mark.root
async def test_sandbox_controllers_have_rows_of_their_own(place: Path) -> None:
    """The row of the API that calls them is there if there are any; one that is away shows in its own row only. The
    store of records is always there.
    """

    async def found(introspection: IntrospectionServicer) -> list[str]:
        request = pb.PluginsRequest(filters=["id~=sandbox", "type~=sandbox"])
        return [f"{row.type} {row.id}" for row in (await introspection.Plugins(request, CALL)).plugins]

    own = ["io.containerd.sandbox.store.v1 local", "io.containerd.grpc.v1 sandboxes"]
    assert await found(servicer(place)) == own
    plugin = ProxyPlugin(type="sandbox", address="/run/k.sock", exports={"root": "/var/lib/k"})
    introspection = servicer(place, Probe(**{"sandbox.kuasar": "away"}), kuasar=plugin)
    assert await found(introspection) == [
        own[0],
        "io.containerd.sandbox.controller.v1 kuasar",
        "io.containerd.grpc.v1 sandbox-controllers",
        own[1],
    ]
    assert await states(introspection) == {"sandbox kuasar": (14, "away: unavailable")}
    [row] = (await introspection.Plugins(pb.PluginsRequest(filters=["id==kuasar"]), CALL)).plugins
    assert dict(row.exports) == {"root": "/var/lib/k", "address": "/run/k.sock"}


@pytest.mark.root
async def test_a_snapshotter_that_cannot_work_here_is_skipped(place: Path) -> None:
    """The row has the reason, and the words by which clients tell "skip" from "error". While the service is absent, the
    row says that instead.
    """
    what = [
        About("overlayfs", trouble="failed to mount overlay: mount: unknown filesystem type overlay."),
        About("odd", ("linux/riscv64", "linux/arm/v7")),
    ]
    introspection = servicer(place, snapshotters=what)
    assert await states(introspection) == {
        "snapshotter overlayfs": (2, "failed to mount overlay: mount: unknown filesystem type overlay.: skip plugin")
    }
    assert await states(servicer(place, Probe(**{"snapshots.overlayfs": "away"}), what)) == {
        "snapshotter overlayfs": (14, "away: unavailable")
    }
    [odd] = (await introspection.Plugins(pb.PluginsRequest(filters=["id==odd"]), CALL)).plugins
    assert [(each.os, each.architecture, each.variant) for each in odd.platforms] == [
        ("linux", "riscv64", ""),
        ("linux", "arm", "v7"),
    ]


@pytest.mark.root
async def test_the_differ_that_a_snapshotter_names_is_there_if_that_works(place: Path) -> None:
    """Whoever follows containerd's docs looks for both rows. One service does the work of both differs; another in its
    place knows nothing of our layers. The configuration can name one for a stranger's snapshotter.
    """

    async def differs(introspection: IntrospectionServicer) -> dict[str, str]:
        wanted = pb.PluginsRequest(filters=["type==io.containerd.differ.v1"])
        return {row.id: row.init_err.message for row in (await introspection.Plugins(wanted, CALL)).plugins}

    exports = {"differ": "erofs"}
    erofs, broken = About("one", exports=exports), About("one", exports=exports, trouble="from files: no such device")
    assert await differs(servicer(place)) == {"walking": ""}
    assert await differs(servicer(place, snapshotters=[erofs])) == {"walking": "", "erofs": ""}
    assert await differs(servicer(place, snapshotters=[broken])) == {
        "walking": "",
        "erofs": "from files: no such device: skip plugin",
    }
    other = ProxyPlugin(type="diff", address="/run/d.sock")
    assert await differs(servicer(place, snapshotters=[erofs], other=other)) == {"other": ""}
    stranger = ProxyPlugin(type="snapshot", address="/run/e.sock")
    assert await differs(servicer(place, snapshotters=[erofs], one=stranger)) == {"walking": ""}
    naming = ProxyPlugin(type="snapshot", address="/run/e.sock", exports={"differ": "its"})
    assert await differs(servicer(place, snapshotters=[erofs], two=naming)) == {"walking": "", "its": "", "erofs": ""}


async def test_a_missing_runtime_is_an_error_that_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the shim is checked, then runc; one that ctr installed below opt counts."""
    monkeypatch.setenv("PATH", str(place / "empty"))
    introspection = servicer(place)
    code, message = (await states(introspection))["runtime task"]
    assert (code, message) == (
        2,
        (
            'runtime "io.containerd.runc.v2" binary not installed "containerd-shim-runc-v2": it is in Debian\'s '
            "package "
            "containerd"
        ),
    )
    opt = place / "root/opt/bin"
    program(opt / "containerd-shim-runc-v2", "#!/bin/sh\n")
    assert "package runc" in (await states(introspection))["runtime task"][1]
    program(opt / "runc", "#!/bin/sh\n")
    assert "runtime task" not in await states(introspection)


async def test_runtime_info_comes_from_the_shim(place: Path) -> None:
    """PluginInfo of the runtime plugin starts the runtime's shim with -info and its options on stdin, and returns the
    shim's answer.
    """
    introspection = servicer(place)
    answer = RuntimeInfo(name="io.containerd.odd.v9", annotations={"a": "b"})
    (place / "answer").write_bytes(answer.SerializeToString())
    shim = place / "root/opt/bin/containerd-shim-odd-v9"
    program(shim, f'#!/bin/sh\ncat > {place}/stdin; echo "$1" > {place}/args; cat {place}/answer\n')
    program(place / "root/opt/bin/containerd-shim-runc-v2", "#!/bin/sh\n")
    program(place / "root/opt/bin/runc", "#!/bin/sh\n")
    options = pack(pb.PluginInfoRequest(id="options"))

    async def info(runtime: str) -> pb.PluginInfoResponse:
        wanted = pack(RuntimeRequest(runtime_path=runtime, options=options))
        return await introspection.PluginInfo(
            pb.PluginInfoRequest(type="io.containerd.runtime.v2", id="task", options=wanted), CALL
        )

    response = await info("io.containerd.odd.v9")
    assert unpack(response.extra, RuntimeInfo) == answer
    assert (place / "args").read_text() == "-info\n"
    assert (place / "stdin").read_bytes() == options.SerializeToString()
    with pytest.raises(
        errors.Unknown,
        match='runtime "io.containerd.none.v1" binary not installed "containerd-shim-none-v1": file does not exist',
    ):
        await info("io.containerd.none.v1")
    with pytest.raises(errors.Unknown, match="invalid runtime name a/b, correct runtime name should be"):
        await info("a/b")
    program(shim, "#!/bin/sh\necho 'no such flag' >&2; exit 2\n")
    with pytest.raises(errors.Unknown) as raised:
        await info("io.containerd.odd.v9")
    assert str(raised.value) == f'failed to run [{shim} -info]: exit status 2 (stderr: "no such flag\\n")'


async def test_only_the_runtime_plugin_has_more_to_say(place: Path) -> None:
    """Other plugins and other requests are unimplemented."""
    introspection = servicer(place)
    for name in ("containerd-shim-runc-v2", "runc"):
        program(place / "root/opt/bin" / name, "#!/bin/sh\n")
    with pytest.raises(errors.Unimplemented):
        await introspection.PluginInfo(
            pb.PluginInfoRequest(type="io.containerd.internal.v1", id="opt", options=pack(RuntimeRequest())), CALL
        )
    with pytest.raises(errors.Unimplemented, match="unknown request type containerd.types.RuntimeInfo"):
        await introspection.PluginInfo(
            pb.PluginInfoRequest(type="io.containerd.runtime.v2", id="task", options=pack(RuntimeInfo())), CALL
        )
    down = servicer(place, Probe(tasks="away"))
    with pytest.raises(errors.FailedPrecondition):
        await down.PluginInfo(
            pb.PluginInfoRequest(type="io.containerd.runtime.v2", id="task", options=pack(RuntimeRequest())), CALL
        )


async def test_the_id_outlives_the_gateway(place: Path) -> None:
    """Another servicer on the same root returns the same id, one on another root another id."""
    first = await servicer(place).Server(Empty(), CALL)
    assert (await servicer(place).Server(Empty(), CALL)).uuid == first.uuid
    assert (place / "root/gateway/uuid").read_text() == first.uuid
    assert (await servicer(place / "other").Server(Empty(), CALL)).uuid != first.uuid


def test_an_id_file_that_was_cut_short_is_replaced_and_a_strange_one_is_not(tmp_path: Path) -> None:
    """An empty file is left by a crash. A file with other contents is not ours, and the error names it."""
    path = tmp_path / "uuid"
    path.touch()
    assert kept_uuid(path) == path.read_text() != ""
    path.write_text("hello")
    with pytest.raises(errors.Internal, match=f"{path} does not hold a UUID: 'hello'"):
        kept_uuid(path)
    assert path.read_text() == "hello"


def test_opt_is_made_as_containerd_makes_it(place: Path) -> None:
    """Other users may enter its directories, but not list them."""
    servicer(place)
    assert [stat.S_IMODE((place / "root/opt" / name).stat().st_mode) for name in ("bin", "lib")] == [0o711, 0o711]
