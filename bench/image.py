"""The images that are pulled. Each is made once into a directory, and kept.

The bench image has eight layers like those of real images, 360 MB compressed, 710 MB and 32,000 files unpacked: a
Debian base (debootstrap); packages on top of it (python3, perl, git and what they need, as a layer of changes); 20,000
small files; one file of 200 MiB that compresses to half; and four layers of a few small files. It takes minutes to
make. The other images are made of it, or of files from a generator with a fixed seed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from deploy.samples import Image, busybox_layer
from services.oci.media_types import CONFIG, LAYER, MANIFEST

_SKIPPED = {"proc", "sys", "dev", "run", "tmp"}
_PACKAGES = ("python3", "perl", "git")


def bench_image(directory: Path) -> Image:
    """The bench image, from ``directory`` if it was made there before. Needs debootstrap and pigz, and the Debian
    mirror of this machine's apt.
    """
    return _kept(directory, _bench_layers(directory))


def zstd_image(directory: Path, of: Image) -> Image:
    """The layers of ``of`` as zstd, level 3, as BuildKit makes them."""
    return _kept(directory, (gzip.decompress(of.blobs[digest]) for digest in of.layers), "zstd")


def one_layer(directory: Path) -> Image:
    """One layer of 1 GiB, 0.7 GB compressed, like a model or a CUDA runtime: 172 files of 6 MiB on average, half of
    whose bytes are compressed already.
    """
    return _kept(directory, (_mixed(random.Random(11), 1 << 30, 12 << 20, "opt/cuda") for _ in range(1)))


def many_layers(directory: Path) -> Image:
    """60 layers of 1 MiB, about 12 files in each."""
    generator = random.Random(12)
    return _kept(directory, (_mixed(generator, 1 << 20, 160 << 10, f"srv/step{number}") for number in range(60)))


def tiny_files(directory: Path) -> Image:
    """Busybox, and a layer of 60,000 files of up to 300 bytes, 200 in each directory."""
    generator = random.Random(13)
    files = (
        (
            f"srv/tiny/d{number // 200:03d}/f{number % 200:03d}",
            b"%x" % generator.getrandbits(generator.randint(8, 1200)),
        )
        for number in range(60_000)
    )
    return _kept(directory, (layer() for layer in (busybox_layer, lambda: _files(files))))


def runnable(directory: Path, of: Image) -> Image:
    """The layers of ``of`` on busybox."""
    layers = (gzip.decompress(of.blobs[digest]) for digest in of.layers)
    return _kept(directory, itertools.chain([busybox_layer()], layers))


def rebased(directory: Path, of: Image) -> Image:
    """The layers of ``of`` on another lowest one, which has one more file: as an image that was built on a newer base
    from layers that do not depend on it.
    """
    return _kept(directory, _rebased(of))


def _rebased(of: Image) -> Iterator[bytes]:
    lowest, *others = of.layers
    buffer = io.BytesIO(gzip.decompress(of.blobs[lowest]))
    with tarfile.open(fileobj=buffer, mode="a", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("usr/share/newer")
        entry.size, entry.mtime = 5, 1_700_000_000
        tar.addfile(entry, io.BytesIO(b"newer"))
    yield buffer.getvalue()
    for digest in others:
        yield gzip.decompress(of.blobs[digest])


def _kept(directory: Path, layers: Iterable[bytes], compression: str = "gzip") -> Image:
    kept, blobs = directory / "image.json", directory / "blobs"
    if not kept.exists():
        shutil.rmtree(blobs, ignore_errors=True)
        blobs.mkdir(parents=True)
        _make(kept, blobs, layers, compression)
    root: str = json.loads(kept.read_text())["digest"]
    return Image(MANIFEST, root, {f"sha256:{p.name}": p.read_bytes() for p in blobs.iterdir()}, "amd64")


def _make(kept: Path, blobs: Path, tars: Iterable[bytes], compression: str) -> None:
    layers = [_put(blobs, raw, compression) for raw in tars]
    config = _store(
        blobs,
        json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
                "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
            }
        ).encode(),
    )
    root = _store(
        blobs,
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, **config},
                "layers": [{"mediaType": f"{LAYER}+{compression}", **descriptor} for descriptor, _ in layers],
            }
        ).encode(),
    )
    kept.write_text(json.dumps(root))


def _bench_layers(directory: Path) -> Iterator[bytes]:
    base, full = directory / "base", directory / "full"
    for path in (base, full):
        shutil.rmtree(path, ignore_errors=True)
    subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", str(base), *_mirror()], check=True, stdout=subprocess.DEVNULL
    )
    subprocess.run(["cp", "-a", str(base), str(full)], check=True)
    shutil.copy("/etc/resolv.conf", full / "etc/resolv.conf")
    for source in (Path("/etc/apt/apt.conf.d")).glob("*proxy*"):
        shutil.copy(source, full / "etc/apt/apt.conf.d")
    subprocess.run(
        ["chroot", str(full), "apt-get", "install", "-qq", "-y", "--no-install-recommends", *_PACKAGES],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    yield from _layers(base, full, random.Random(7))  # the same image each time
    shutil.rmtree(base)
    shutil.rmtree(full)


def _mirror() -> list[str]:
    """The mirror that this machine's apt uses, for debootstrap."""
    policy = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"], capture_output=True, text=True, check=True
    ).stdout
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
    yield _files(
        (f"srv/app/node_modules/p{i // 40:03d}/lib/f{i % 40}.js", text(generator.randint(200, 6000)))
        for i in range(20_000)
    )
    yield _files([("opt/model.bin", b"".join(generator.randbytes(1 << 19) + text(1 << 19) for _ in range(200)))])
    for k in range(4):
        yield _files((f"etc/app/conf{k}.d/x{j}.conf", text(3000)) for j in range(20))


def _tree(root: Path, below: Path | None) -> bytes:
    """A tar of ``root``, without files that are the same in ``below``."""
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


def _mixed(generator: random.Random, size: int, largest: int, directory: str) -> bytes:
    """A tar of about ``size`` bytes in files of up to ``largest``. They consist of pieces of 64 KiB: half of them
    random, like compressed data; half text, which compresses to two fifths.
    """
    words = [f"{generator.getrandbits(40):x}".encode() for _ in range(5000)]
    # 11 MiB; no window of gzip or zstd is as large, so overlapping pieces do not compress
    text = b" ".join(generator.choice(words) for _ in range(1 << 20))
    piece = 1 << 16

    def data(size: int) -> bytes:
        parts = []
        for _ in range(0, size, piece):
            at = generator.randrange(len(text) - piece)
            parts.append(generator.randbytes(piece) if generator.random() < 0.5 else text[at : at + piece])
        return b"".join(parts)[:size]

    def files() -> Iterator[tuple[str, bytes]]:
        left, number = size, 0
        while left > 0:
            length = min(left, generator.randint(1, largest))
            yield f"{directory}/lib{number}.so", data(length)
            left, number = left - length, number + 1

    return _files(files())


def _put(blobs: Path, raw: bytes, compression: str) -> tuple[dict[str, object], str]:
    if compression == "zstd":
        packed = zstandard.ZstdCompressor(level=3).compress(raw)
    else:
        packed = subprocess.run(["pigz", "-6", "-n"], input=raw, stdout=subprocess.PIPE, check=True).stdout
    return _store(blobs, packed), "sha256:" + hashlib.sha256(raw).hexdigest()


def _store(blobs: Path, data: bytes) -> dict[str, object]:
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
