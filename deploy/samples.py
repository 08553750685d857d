"""Makes small container images, and serves them from a registry on loopback; for the demo and for tests.

An image here is a dictionary of blobs and the descriptor of its root. :func:`tar_of` makes layers from a list of
entries, so that a test says what is in a layer in a few lines::

    with Registry(directory) as registry:
        reference = registry.push(busybox_image(), "box:1")       # 127.0.0.1:PORT/box:1
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.oci import platforms
from services.oci.digests import digest_of
from services.oci.media_types import CONFIG, INDEX, LAYER, MANIFEST

APPLETS = tuple(
    "sh ls cat echo sleep true false ps top env mount hostname id date dd touch mkdir rm stat wc tty readlink kill "
    "trap seq test head grep"
    " yes tr cut sort nc ip".split()
)


class MissingProgramError(Exception):
    """A program of Debian is not installed; the message says which package has it."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image or an index: its root descriptor and all blobs that it needs, by digest."""

    media_type: str
    digest: str
    blobs: Mapping[str, bytes] = field(repr=False)
    architecture: str = ""

    @property
    def descriptor(self) -> dict[str, Any]:
        """The root as an OCI descriptor."""
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": len(self.blobs[self.digest]),
        }
        if self.architecture:
            found["platform"] = {"architecture": self.architecture, "os": "linux"}
        return found

    @property
    def layers(self) -> list[str]:
        """Digests of the compressed layers, lowest first; empty for an index."""
        return [d["digest"] for d in json.loads(self.blobs[self.digest]).get("layers", [])]


def tar_of(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> bytes:
    """A tar of (name, attributes) pairs. The attributes are ``data``, ``type`` (of tarfile), ``mode``, ``uid``,
    ``gid``, ``link``, ``dev``, ``xattrs``, ``mtime``, all optional.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, what in entries:
            entry = tarfile.TarInfo(name)
            entry.type = what.get("type", tarfile.REGTYPE)
            entry.mode = what.get("mode", 0o755 if entry.type == tarfile.DIRTYPE else 0o644)
            entry.uid, entry.gid, entry.mtime = what.get("uid", 0), what.get("gid", 0), what.get("mtime", 1_600_000_000)
            entry.linkname = what.get("link", "")
            entry.devmajor, entry.devminor = what.get("dev", (0, 0))
            for key, value in what.get("xattrs", {}).items():
                entry.pax_headers = {**entry.pax_headers, "SCHILY.xattr." + key: value}
            data = what.get("data", b"")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def image(
    layers: Sequence[bytes], *, cmd: Sequence[str] = ("sh",), env: Sequence[str] = (), architecture: str = ""
) -> Image:
    """An image of uncompressed ``layers``, which are gzipped. The default architecture is this machine's."""
    architecture = architecture or platforms.default().architecture
    blobs: dict[str, bytes] = {}

    def put(data: bytes) -> dict[str, Any]:
        blobs[digest_of(data)] = data
        return {"digest": digest_of(data), "size": len(data)}

    descriptors = [{"mediaType": LAYER + "+gzip", **put(_gzipped(raw))} for raw in layers]
    config = put(
        json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Cmd": list(cmd), "Env": ["PATH=/bin", *env]},
                "rootfs": {"type": "layers", "diff_ids": [digest_of(raw) for raw in layers]},
            }
        ).encode()
    )
    root = put(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, **config},
                "layers": descriptors,
            }
        ).encode()
    )
    return Image(MANIFEST, root["digest"], blobs, architecture)


@functools.lru_cache(maxsize=4)
def _gzipped(raw: bytes) -> bytes:
    """A layer that many images begin with, such as busybox, is compressed once."""
    return gzip.compress(raw, 6, mtime=0)


def index(*images: Image) -> Image:
    """An index of several images, such as one for each architecture."""
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [i.descriptor for i in images]}).encode()
    blobs = {digest_of(data): data}
    for each in images:
        blobs.update(each.blobs)
    return Image(INDEX, digest_of(data), blobs)


def busybox_layer() -> bytes:
    """The smallest root file system with a shell: Debian's busybox-static and links to it."""
    return _busybox_layer()


@functools.cache
def _busybox_layer() -> bytes:
    program = shutil.which("busybox") or "/bin/busybox"
    try:
        busybox = Path(program).read_bytes()
    except OSError:
        raise MissingProgramError("busybox is not there: apt-get install busybox-static") from None
    folder = {"type": tarfile.DIRTYPE}
    return tar_of(
        [
            ("bin", folder),
            ("bin/busybox", {"data": busybox, "mode": 0o755}),
            *((f"bin/{name}", {"type": tarfile.SYMTYPE, "link": "busybox"}) for name in APPLETS),
            *((name, folder) for name in ("etc", "proc", "sys", "dev", "root", "var")),
            ("tmp", {"type": tarfile.DIRTYPE, "mode": 0o1777}),
            ("etc/passwd", {"data": b"root:x:0:0:root:/root:/bin/sh\n"}),
            ("etc/group", {"data": b"root:x:0:\n"}),
        ]
    )


def busybox_image(*more: bytes, cmd: Sequence[str] = ("sh",), env: Sequence[str] = ()) -> Image:
    """An image with a shell, and ``more`` layers on top."""
    return image([busybox_layer(), *more], cmd=cmd, env=env)


class Registry:
    """Debian's docker-registry on a free loopback port, with its files below ``directory``. A context manager."""

    def __init__(self, directory: Path) -> None:
        if shutil.which("docker-registry") is None:
            raise MissingProgramError("docker-registry is not there: apt-get install docker-registry")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"  # a minimal Debian cannot resolve localhost
        directory.mkdir(parents=True, exist_ok=True)
        self.config = directory / "registry.json"  # YAML reads JSON
        self.config.write_text(
            json.dumps(
                {
                    "version": 0.1,
                    "log": {"level": "error"},
                    "storage": {
                        "filesystem": {"rootdirectory": str(directory / "registry")},
                        "delete": {"enabled": True},
                    },
                    "http": {"addr": f"127.0.0.1:{self.port}"},
                }
            )
        )
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(self.config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 15
        while self.http("GET", "/v2/")[0] != 200:
            if time.monotonic() > end or self._process.poll() is not None:
                self.close()
                raise TimeoutError("docker-registry does not answer")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the registry; its files stay."""
        self._process.terminate()
        self._process.wait()

    def http(
        self, method: str, path: str, data: bytes | None = None, content_type: str = "application/octet-stream"
    ) -> tuple[int, dict[str, str], bytes]:
        """One request: status (0: no answer), headers, body. ``path`` may be a whole URL."""
        url = path if path.startswith("http") else f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(
            url, data=data, method=method, headers={"Content-Type": content_type} if data is not None else {}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()
        except OSError:
            return 0, {}, b""

    def push(self, what: Image, name: str) -> str:
        """Store an image or an index as ``name:tag``. The result is the reference to pull."""
        repository, tag = name.rsplit(":", 1)
        self._push_manifest(what, repository, what.digest, what.media_type, tag)
        return f"{self.host}/{name}"

    def _push_manifest(self, what: Image, repository: str, digest: str, media_type: str, tag: str) -> None:
        manifest = json.loads(what.blobs[digest])
        for child in manifest.get("manifests", []):
            self._push_manifest(what, repository, child["digest"], child["mediaType"], child["digest"])
        for child in [manifest["config"], *manifest["layers"]] if "config" in manifest else []:
            self._push_blob(repository, child["digest"], what.blobs[child["digest"]])
        status, _, body = self.http("PUT", f"/v2/{repository}/manifests/{tag}", what.blobs[digest], media_type)
        if status != 201:
            raise OSError(f"push of {repository}:{tag} was answered {status}: {body[:200]!r}")

    def _push_blob(self, repository: str, digest: str, data: bytes) -> None:
        _, headers, _ = self.http("POST", f"/v2/{repository}/blobs/uploads/", b"")
        location = headers["Location"]
        status, _, body = self.http("PUT", f"{location}{'&' if '?' in location else '?'}digest={digest}", data)
        if status != 201:
            raise OSError(f"push of blob {digest} was answered {status}: {body[:200]!r}")
