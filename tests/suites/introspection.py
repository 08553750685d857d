"""The suite of containerd.services.introspection.v1 and version.v1. It runs on the servicers, on the gateway, and on
containerd itself.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from api.containerd.services.introspection.v1 import introspection_pb2 as pb
from api.containerd.services.introspection.v1 import introspection_stubs
from api.containerd.services.version.v1 import version_stubs
from services.kit import errors
from services.kit.rpc import Channel

INTROSPECTION = introspection_stubs.INTROSPECTION
VERSION = version_stubs.VERSION

LOOKED_FOR = [
    ("io.containerd.content.v1", "content"),
    ("io.containerd.snapshotter.v1", "overlayfs"),
    ("io.containerd.snapshotter.v1", "native"),
    ("io.containerd.metadata.v1", "bolt"),
    ("io.containerd.differ.v1", "walking"),
    ("io.containerd.gc.v1", "scheduler"),
    ("io.containerd.event.v1", "exchange"),
    ("io.containerd.runtime.v2", "task"),
    ("io.containerd.internal.v1", "opt"),
    *(
        ("io.containerd.service.v1", f"{name}-service")
        for name in ("containers", "content", "diff", "images", "introspection", "namespaces", "snapshots", "tasks")
    ),
    *(
        ("io.containerd.grpc.v1", name)
        for name in (
            "containers",
            "content",
            "diff",
            "events",
            "healthcheck",
            "images",
            "introspection",
            "leases",
            "namespaces",
            "snapshots",
            "tasks",
            "version",
        )
    ),
]
"""Rows that clients look for, or that people read in the output of ``ctr plugins ls``."""


async def plugins(introspection: Any, *filters: str) -> list[pb.Plugin]:
    """The rows that match."""
    return list((await introspection.Plugins(pb.PluginsRequest(filters=filters))).plugins)


class IntrospectionSuite:
    """A subclass has a fixture ``channel`` to a node whose services are all healthy."""

    @pytest.fixture
    def introspection(self, channel: Channel) -> Any:
        return channel.client(INTROSPECTION)

    async def test_the_rows_that_clients_look_for_are_there(self, introspection: Any) -> None:
        """Each is there once, and is healthy."""
        found = [((row.type, row.id), row.init_err.code) for row in await plugins(introspection)]
        for row in LOOKED_FOR:
            assert [code for name, code in found if name == row] == [0], row

    async def test_snapshotters_differ_and_runtime_name_their_platform(self, introspection: Any) -> None:
        """It is this machine's platform; services have none."""
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        for row in await plugins(introspection):
            if (row.type, row.id) in LOOKED_FOR and row.type.split(".")[2] in {"snapshotter", "differ", "runtime"}:
                assert [(p.os, p.architecture) for p in row.platforms] == [("linux", machine)], row.id
            elif row.type == "io.containerd.grpc.v1":
                assert not row.platforms, row.id

    @pytest.mark.parametrize(
        ("filters", "wanted"),
        [
            (["id==opt"], {("io.containerd.internal.v1", "opt")}),
            (["type==io.containerd.snapshotter.v1, id==overlayfs"], {("io.containerd.snapshotter.v1", "overlayfs")}),
            (
                ["type==io.containerd.snapshotter.v1,id==native", "id==walking"],
                {("io.containerd.snapshotter.v1", "native"), ("io.containerd.differ.v1", "walking")},
            ),
            (["id==nosuch"], set()),
            (["platforms"], set()),
        ],
    )
    async def test_filters_select(self, introspection: Any, filters: list[str], wanted: set[tuple[str, str]]) -> None:
        """Filters select by type and id; there are no other fields."""
        assert {(row.type, row.id) for row in await plugins(introspection, *filters)} == wanted

    async def test_a_bad_filter_is_an_error(self, introspection: Any) -> None:
        """The message is the parser's."""
        with pytest.raises(errors.NodeError, match="parse error"):
            await plugins(introspection, "type==='")

    async def test_opt_exports_where_ctr_installs(self, introspection: Any) -> None:
        """It is an absolute path with bin and lib."""
        [row] = await plugins(introspection, "id==opt")
        path = Path(row.exports["path"])
        assert path.is_absolute()
        assert (path / "bin").is_dir()
        assert (path / "lib").is_dir()

    async def test_the_server_has_a_lasting_id(self, introspection: Any) -> None:
        """It is a UUID, the same each time."""
        first = (await introspection.Server(Empty())).uuid
        assert str(uuid.UUID(first)) == first
        assert (await introspection.Server(Empty())).uuid == first

    async def test_the_version_is_semantic(self, channel: Channel) -> None:
        """Clients parse it and depend on it (nerdctl fails if it cannot be parsed)."""
        answer = await channel.client(VERSION).Version(Empty())
        assert re.match(r"^[1-9]\d*\.\d+\.\d+([-+~][0-9A-Za-z.+~-]+)?$", answer.version)


class NodeIntrospectionSuite(IntrospectionSuite):
    """Features that containerd has from 2.0 on."""

    async def test_the_server_is_a_process_of_this_machine(self, introspection: Any) -> None:
        """Its pid runs in the pid namespace that it names."""
        answer = await introspection.Server(Empty())
        assert os.stat(f"/proc/{answer.pid}/ns/pid").st_ino == answer.pidns

    async def test_transfers_and_their_streams_are_there(self, introspection: Any) -> None:
        """nerdctl and ctr 2 check whether the node has them."""
        for type_, name in (
            ("image-verifier.v1", "bindir"),
            ("transfer.v1", "local"),
            ("streaming.v1", "manager"),
            ("grpc.v1", "transfer"),
            ("grpc.v1", "streaming"),
        ):
            [row] = await plugins(introspection, f"type==io.containerd.{type_},id=={name}")
            assert not row.init_err.code

    async def test_restart_names_its_policies(self, introspection: Any) -> None:
        """nerdctl run --restart checks it first."""
        [row] = await plugins(introspection, "id==restart")
        assert set(row.capabilities) == {"no", "always", "on-failure", "unless-stopped"}

    async def test_plugin_info_of_one_row(self, introspection: Any) -> None:
        """The row is the one that Plugins lists; another is NOT_FOUND in containerd's words."""
        [row] = await plugins(introspection, "id==opt")
        answer = await introspection.PluginInfo(pb.PluginInfoRequest(type=row.type, id=row.id))
        assert answer.plugin == row
        assert not answer.HasField("extra")
        with pytest.raises(errors.NotFound) as raised:
            await introspection.PluginInfo(pb.PluginInfoRequest(type="io.containerd.x.v1", id="y"))
        assert str(raised.value) == "plugin io.containerd.x.v1.y not found: not found"
