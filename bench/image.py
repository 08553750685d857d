"""The bench image: eight layers such as real images have, 360 MB compressed, 710 MB and 32,000 files unpacked.

A Debian base (debootstrap), packages on top of it (python3, perl, git and what they need, as a layer of what changed), 20,000 small files, one file of
200 MiB that compresses to half, and four layers of a few small files. Made once into a directory and kept: it takes minutes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from deploy.images import CONFIG, LAYER, MANIFEST, Image

_SKIPPED = {"proc", "sys", "dev", "run", "tmp"}
_PACKAGES = ("python3", "perl", "git")


def bench_image(directory: Path) -> Image:
    """The image, from ``directory`` if it was made there before. Needs debootstrap and pigz, and Debian's mirror as apt has it."""
    kept = directory / "image.json"
    if not kept.exists():
        directory.mkdir(parents=True, exist_ok=True)
        _make(directory, kept)
    root: str = json.loads(kept.read_text())["digest"]
    blobs = {f"sha256:{p.name}": p.read_bytes() for p in (directory / "blobs").iterdir()}
    return Image(MANIFEST, root, blobs, "amd64")


def _make(directory: Path, kept: Path) -> None:
    base, full, blobs = directory / "base", directory / "full", directory / "blobs"
    for path in (base, full, blobs):
        shutil.rmtree(path, ignore_errors=True)
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(base), *_mirror()], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cp", "-a", str(base), str(full)], check=True)
    shutil.copy("/etc/resolv.conf", full / "etc/resolv.conf")
    for source in (Path("/etc/apt/apt.conf.d")).glob("*proxy*"):
        shutil.copy(source, full / "etc/apt/apt.conf.d")
    subprocess.run(["chroot", str(full), "apt-get", "install", "-qq", "-y", "--no-install-recommends", *_PACKAGES], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    blobs.mkdir()
    generator = random.Random(7)  # the same image each time
    layers = [_put(blobs, raw) for raw in _layers(base, full, generator)]
    config = _store(blobs, json.dumps({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
    }).encode())
    root = _store(blobs, json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": CONFIG, **config},
        "layers": [{"mediaType": f"{LAYER}+gzip", **descriptor} for descriptor, _ in layers],
    }).encode())
    shutil.rmtree(base)
    shutil.rmtree(full)
    kept.write_text(json.dumps(root))


def _mirror() -> list[str]:
    """The mirror that this machine's apt uses, so that debootstrap uses it too."""
    policy = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"], capture_output=True, text=True, check=True).stdout
    return next(([line.split()[0]] for line in policy.splitlines() if line.endswith(" bookworm")), [])


def _layers(base: Path, full: Path, generator: random.Random) -> Iterator[bytes]:
    words = [f"{generator.getrandbits(40):x}".encode() for _ in range(5000)]

    def text(size: int) -> bytes:
        parts, length = [], 0
        while length < size:
            parts.append(generator.choice(words))
            length += len(parts[-1]) + 1
        return b" ".join(parts)[:size]

    yield _tree(base, None)
    yield _tree(full, base)
    yield _files((f"srv/app/node_modules/p{i // 40:03d}/lib/f{i % 40}.js", text(generator.randint(200, 6000))) for i in range(20_000))
    yield _files([("opt/model.bin", b"".join(generator.randbytes(1 << 19) + text(1 << 19) for _ in range(200)))])
    for k in range(4):
        yield _files((f"etc/app/conf{k}.d/x{j}.conf", text(3000)) for j in range(20))


def _tree(root: Path, below: Path | None) -> bytes:
    """A tar of ``root``, without what is the same in ``below``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for directory, names, files in os.walk(root):
            names.sort()
            for name in sorted(names + files):
                path = Path(directory, name)
                relative = path.relative_to(root)
                if relative.parts[0] not in _SKIPPED and (below is None or _differs(path, below / relative)):
                    tar.add(path, str(relative), recursive=False)
    return buffer.getvalue()


def _differs(path: Path, other: Path) -> bool:
    if not os.path.lexists(other):
        return True
    a, b = path.lstat(), other.lstat()
    return (a.st_size, a.st_mtime_ns, a.st_mode) != (b.st_size, b.st_mtime_ns, b.st_mode)


def _files(files: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), 0o644, 1_700_000_000
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _put(blobs: Path, raw: bytes) -> tuple[dict[str, object], str]:
    packed = subprocess.run(["pigz", "-6", "-n"], input=raw, stdout=subprocess.PIPE, check=True).stdout
    return _store(blobs, packed), "sha256:" + hashlib.sha256(raw).hexdigest()


def _store(blobs: Path, data: bytes) -> dict[str, object]:
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
