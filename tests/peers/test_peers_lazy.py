"""Snapshotters of others that fetch layers lazily, unmodified, as proxy plugins of a node: an image that their own tool
converted is pulled without its layers, and a container reads files that only the registry has. docs/works-with.md says
where the programs come from.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.samples import Image, Registry, busybox_image, image, tar_of
from services.oci.digests import digest_of
from tests.fake_registry import Authority
from tests.peer import program
from tests.support import Node, eventually, listening, mounts_below, short_directory

PROGRAMS = os.environ.get("SPLITD_TEST_LAZY", "")
"""The directory with their programs: ``soci`` and ``soci-snapshotter-grpc``; ``ctr-remote`` and
``containerd-stargz-grpc``; ``containerd-nydus-grpc``, ``nydusd`` and ``nydus-image``.
"""
NERDCTL = Path(sys.prefix) / "peers/nerdctl"

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(300)]

BIG = random.Random(13).randbytes(12_000_000)
IMAGE = busybox_image(
    tar_of([("data", {"type": tarfile.DIRTYPE}), ("data/big", {"data": BIG}), ("data/small", {"data": b"lazy"})]),
    tar_of([("data/.wh.small", {}), ("data/upper", {"data": b"upper"})]),
)
SUM = f"{hashlib.sha256(BIG).hexdigest()}  /data/big\n"


def _program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join(each for each in (PROGRAMS, os.environ["PATH"]) if each))
    if not found:
        pytest.skip(f"no {name}: name its directory in SPLITD_TEST_LAZY")
    return found


@contextlib.contextmanager
def _running(log: Path, *command: str) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


# ------------------------------------------------------------------------------------------ a registry with and without TLS


class _Either(socketserver.ThreadingTCPServer):
    """A port that leads to one of two others: to the second if a client begins with TLS. SOCI 0.4.1 asks a registry on
    loopback for its indices with TLS, and for its layers without.
    """

    daemon_threads = True

    def __init__(self, plain: int, secure: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.plain, self.secure = plain, secure
        self.host = f"127.0.0.1:{self.server_address[1]}"


class _Forward(socketserver.BaseRequestHandler):
    server: _Either

    def handle(self) -> None:
        tls = self.request.recv(1, socket.MSG_PEEK) == b"\x16"
        with socket.create_connection(("127.0.0.1", self.server.secure if tls else self.server.plain)) as there:
            back = threading.Thread(target=_pour, args=(there, self.request))
            back.start()
            _pour(self.request, there)
            back.join()


def _pour(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def _either(registry: Registry, directory: Path) -> Iterator[str]:
    """A host at which the registry is reached with TLS and without; its authority's certificate is in the file that
    SSL_CERT_FILE names.
    """
    authority = Authority(directory / "ca")
    certificate, key = authority.issue("registry")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    at = f'"addr": "127.0.0.1:{port}", "tls": {{"certificate": "{certificate}", "key": "{key}"}}'
    config = directory / "secure.json"
    config.write_text(registry.config.read_text().replace(f'"addr": "{registry.host}"', at))
    with (
        _running(directory / "secure.log", "docker-registry", "serve", str(config)),
        _Either(registry.port, port) as either,
    ):
        threading.Thread(target=either.serve_forever, daemon=True).start()
        try:
            eventually(lambda: _accepts(port), "the registry with TLS does not serve")
            yield either.host
        finally:
            either.shutdown()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# ------------------------------------------------------------------------------------------ the snapshotters


class Lazy:
    """A snapshotter of others below a node; subclasses say which."""

    name: str
    server: str
    """Its program."""
    client: tuple[str, ...] = ()
    """Its project's own command to pull."""
    whole = 0
    """The lowest layers of its image that are fetched all the same."""
    mounts_layers = True
    """Whether each layer is mounted when the image is there; else the image is when a container needs it."""

    def __init__(self, directory: Path, registry: Registry, host: str) -> None:
        self.directory, self.registry, self.host = directory, registry, host
        self.socket, self.root = directory / "g.sock", directory / "g"
        self.node = Node(
            directory,
            config=f'[proxy_plugins.{self.name}]\ntype = "snapshot"\naddress = "{self.socket}"\n'
            f"[proxy_plugins.{self.name}.exports]\n"
            f'root = "{self.root}"\nenable_remote_snapshot_annotations = "true"\n',
        )
        self.reference = ""
        """The converted image."""
        self.layers = 0

    def command(self) -> list[str]:
        """How its program is started."""
        (config := self.directory / "g.toml").write_text(self.config())
        where = ["--address", str(self.socket), "--root", str(self.root), "--config", str(config)]
        return [_program(self.server), *where, "--log-level", "debug"]

    def config(self) -> str:
        return ""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Its process, which the block may :meth:`kill`."""
        self.start()
        try:
            yield
        finally:
            self.process.terminate()
            self.process.wait(20)

    def start(self) -> None:
        env = {**os.environ, "SSL_CERT_FILE": str(self.directory / "ca/ca.crt")}
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, env=env)
        eventually(lambda: listening(self.socket), f"{self.server} does not serve")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def converted(self) -> str:
        """Push an image that it pulls lazily, and return its reference."""
        raise NotImplementedError


class Soci(Lazy):
    """An index of each layer is beside the image, which stays as it is."""

    name, server, client = "soci", "soci-snapshotter-grpc", ("soci", "image", "rpull")
    STORE = Path("/var/lib/soci-snapshotter-grpc")
    """Where the server keeps the indices that it fetches, whatever its root is."""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        new = not self.STORE.exists()
        try:
            with super().running():
                yield
        finally:
            if new:
                shutil.rmtree(self.STORE, ignore_errors=True)

    def converted(self) -> str:
        self.registry.push(IMAGE, "soci:1")
        reference = f"{self.host}/soci:1"
        self.node.ctr("images", "pull", "--plain-http", reference)
        (store := self.directory / "store").mkdir()
        soci = f"{_program('soci')} --address {self.node.socket}"
        script = (
            f"mount --bind {store} /var/lib\n"  # where it keeps indices, whatever it is told
            f"{soci} create --min-layer-size 0 {reference} && {soci} push --plain-http {reference}"
        )
        command = ["unshare", "--mount", "sh", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return reference


class Stargz(Lazy):
    """Layers are converted to eStargz."""

    name, server, client = "stargz", "containerd-stargz-grpc", ("ctr-remote", "images", "rpull")

    def converted(self) -> str:
        reference, converted = self.registry.push(IMAGE, "box:1"), f"{self.host}/stargz:1"
        self.node.ctr("images", "pull", "--plain-http", reference)
        words = ("images", "optimize", "--oci", "--no-optimize", reference, converted)
        self.node.ctr(*words, program=_program("ctr-remote"))
        self.node.ctr("images", "push", "--plain-http", converted)
        return converted


class Nydus(Lazy):
    """The image is converted to a blob of chunks, and a layer above it with the directories, which is fetched."""

    name, server, whole, mounts_layers = "nydus", "containerd-nydus-grpc", 1, False

    def command(self) -> list[str]:
        return [*super().command(), "--log-to-stdout"]

    def config(self) -> str:
        backend = {"type": "registry", "config": {"scheme": "http", "timeout": 5, "connect_timeout": 5}}
        device = {"backend": backend, "cache": {"type": "blobcache"}}
        (of_nydusd := self.directory / "nydusd.json").write_text(json.dumps({"device": device, "mode": "direct"}))
        nydusd = (
            self.directory / "nydusd"
        )  # it would raise its limit of open files, for which root may lack a capability
        nydusd.write_text(f'#!/bin/sh\nexec {_program("nydusd")} "$@" --rlimit-nofile "$(ulimit -Hn)"\n')
        nydusd.chmod(0o700)
        return (
            f'version = 1\ndaemon_mode = "dedicated"\n[system]\nenable = false\n[cgroup]\nenable = false\n'
            f'[daemon]\nnydusd_path = "{nydusd}"\nnydusimage_path = "{_program("nydus-image")}"\n'
            f'nydusd_config = "{of_nydusd}"\nfs_driver = "fusedev"\n'
        )

    def converted(self) -> str:
        """As nydus' builders do it: its program that converts images is in no registry of packages."""
        tree, blob, boot = (self.directory / name for name in ("tree", "blob", "boot"))
        for layer in IMAGE.layers:
            with tarfile.open(fileobj=io.BytesIO(IMAGE.blobs[layer])) as tar:
                tar.extractall(tree, filter="tar")
        for name in ("data/small", "data/.wh.small"):
            (tree / name).unlink()
        words = ["create", "--bootstrap", str(boot), "--blob", str(blob), "--log-level", "warn", str(tree)]
        subprocess.run([_program("nydus-image"), *words], check=True, timeout=60, stdout=subprocess.DEVNULL)
        files = tar_of([("image", {"type": tarfile.DIRTYPE}), ("image/image.boot", {"data": boot.read_bytes()})])
        made = image([files])
        manifest = json.loads(made.blobs[made.digest])
        config = json.loads(made.blobs[manifest["config"]["digest"]])
        data = blob.read_bytes()
        lowest = {"mediaType": "application/vnd.oci.image.layer.nydus.blob.v1", **_blob(data)}
        lowest["annotations"] = {"containerd.io/snapshot/nydus-blob": "true"}
        manifest["layers"][0]["annotations"] = {
            "containerd.io/snapshot/nydus-bootstrap": "true",
            "containerd.io/snapshot/nydus-fs-version": "6",
        }
        manifest["layers"].insert(0, lowest)
        config["rootfs"]["diff_ids"].insert(0, lowest["digest"])
        changed = json.dumps(config).encode()
        manifest["config"] |= _blob(changed)
        root = json.dumps(manifest).encode()
        blobs = {**made.blobs, **{digest_of(each): each for each in (data, changed, root)}}
        self.registry.push(Image(made.media_type, digest_of(root), blobs), "nydus:1")
        return f"{self.host}/nydus:1"


def _blob(data: bytes) -> dict[str, Any]:
    return {"digest": digest_of(data), "size": len(data)}


@pytest.fixture(scope="module", params=[Soci, Stargz, Nydus], ids=lambda kind: str(kind.name))
def lazy(request: pytest.FixtureRequest, registry: Registry) -> Iterator[Lazy]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(short_directory(Path("/var/tmp")))  # overlayfs does not stack on every tmpfs
        found: Lazy = request.param(directory, registry, stack.enter_context(_either(registry, directory)))
        stack.enter_context(found.running())
        stack.callback(found.node.clear)
        found.node.up()
        found.reference = found.converted()
        yield found


@pytest.fixture
def empty(lazy: Lazy) -> Iterator[Lazy]:
    """Without images, before and after the test: then nothing of theirs is mounted."""
    _clear(lazy)
    yield lazy
    _clear(lazy)


def _clear(lazy: Lazy) -> None:
    for each in lazy.node.out("images", "ls", "-q").split():
        lazy.node.ctr("images", "rm", "--sync", each)
    eventually(lambda: not mounts_below(lazy.root), "layers stay mounted")
    assert not lazy.node.out("snapshots", "--snapshotter", lazy.name, "ls").splitlines()[1:]


def _is_lazy(lazy: Lazy) -> None:
    """The image is there, and its layers are not."""
    said = lazy.node.out("content", "ls")
    layers = set(re.findall(r"containerd\.io/gc\.ref\.content\.l\.\d+=(sha256:[0-9a-f]+)", said))
    assert len(layers) > lazy.whole
    assert len(layers & {line.split()[0] for line in said.splitlines()[1:]}) == lazy.whole, "layers were fetched"
    assert len(mounts_below(lazy.root)) == (len(layers) if lazy.mounts_layers else 0)


def _runs(lazy: Lazy) -> None:
    """A container reads files of each layer."""
    run = ("run", "--rm", "--snapshotter", lazy.name, lazy.reference, "reader")
    assert lazy.node.out(*run, "cat", "/data/upper") == "upper"
    assert lazy.node.out(*run, "busybox", "sha256sum", "/data/big") == SUM
    lazy.node.ctr(*run, "cat", "/data/small", ok=False)


def test_splitd_pulls_lazily(empty: Lazy) -> None:
    """The node gives the labels by which a snapshotter finds the layers, since the plugin exports that it wants them:
    it answers that each snapshot exists.
    """
    empty.node.splitd("pull", "--plain-http", "--snapshotter", empty.name, empty.reference)
    _is_lazy(empty)
    _runs(empty)


def test_ctr_2_pulls_lazily(empty: Lazy) -> None:
    """Its pull is the node's: it asks for containerd's Transfer service."""
    pull = ("images", "pull", "--plain-http", "--snapshotter", empty.name, empty.reference)
    empty.node.ctr(*pull, program=program("ctr"))
    _is_lazy(empty)
    _runs(empty)


def test_nerdctl_pulls_lazily(empty: Lazy) -> None:
    """It unpacks by itself, and gives the labels to a snapshotter whose name it knows."""
    if not NERDCTL.exists():
        pytest.skip("no nerdctl: make peers-check builds it")
    where = ["--address", str(empty.node.socket), "--namespace", "default", "--data-root", str(empty.root.parent / "d")]
    words = [*where, "--snapshotter", empty.name, "--insecure-registry", "pull", "--quiet", empty.reference]
    done = subprocess.run([NERDCTL, *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    _is_lazy(empty)
    _runs(empty)


def test_their_own_client_pulls_lazily(empty: Lazy) -> None:
    """rpull of the snapshotter's own project, a client of containerd 1.7."""
    if not empty.client:
        pytest.skip("it has none")
    client, *words = empty.client
    words += ["--plain-http", "--snapshotter", empty.name, empty.reference]
    empty.node.ctr(*words, program=_program(client))
    _is_lazy(empty)
    _runs(empty)


def test_ctr_1_pulls_whole_layers(empty: Lazy) -> None:
    """It unpacks by itself and gives no labels: the snapshotter is one like others, and the image runs all the same."""
    pull = ("images", "pull", "--plain-http", "--snapshotter", empty.name, empty.reference)
    if isinstance(empty, Nydus):
        assert "no processor for media-type" in empty.node.ctr(*pull, ok=False).stderr  # nydus' own blob is no tar
        return
    empty.node.ctr(*pull)
    _runs(empty)


def test_a_restarted_node(empty: Lazy) -> None:
    """What was adopted is there after a restart of the node, and runs."""
    empty.node.splitd("pull", "--plain-http", "--snapshotter", empty.name, empty.reference)
    empty.node.splitd("restart", "--all")
    _is_lazy(empty)
    _runs(empty)


def test_a_killed_snapshotter(empty: Lazy) -> None:
    """The node uses it as soon as it is there again, and what it had runs."""
    empty.node.splitd("pull", "--plain-http", "--snapshotter", empty.name, empty.reference)
    empty.kill()
    empty.node.ctr("snapshots", "--snapshotter", empty.name, "usage", "nothing", ok=False)
    empty.start()
    _is_lazy(empty)
    _runs(empty)


def test_two_namespaces_share_layers(empty: Lazy) -> None:
    """Each has the image; the snapshotter keeps what both have until neither does."""
    for namespace in ("default", "other"):
        empty.node.splitd("pull", "-n", namespace, "--plain-http", "--snapshotter", empty.name, empty.reference)
    empty.node.ctr("images", "rm", "--sync", empty.reference, namespace="other")
    _is_lazy(empty)
    _runs(empty)
    assert not empty.node.out("snapshots", "--snapshotter", empty.name, "ls", namespace="other").splitlines()[1:]
