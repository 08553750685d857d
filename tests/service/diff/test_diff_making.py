"""Diff.Diff compared with containerd's: the same two trees give the same layer."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.suites.diff_sides import TAR, Side, bind
from tests.suites.diff_trees import CHANGES, OLD, members, put, trees

pytestmark = [pytest.mark.root, pytest.mark.once]


def without_times(data: bytes) -> bytes:
    """Return a tar with whiteouts dated 1970, as containerd 2.x makes them; 1.6 gives them the current time."""
    out = bytearray(data)
    at = 0
    while out[at : at + 512].strip(b"\0"):
        block = out[at : at + 512]
        if b"/.wh." in b"/" + block[:100] + block[345:500]:
            block[136:148] = b"00000000000\0"
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            out[at : at + 512] = block
        at += 512 + -(-int(bytes(block[124:135]), 8) // 512) * 512
    return bytes(out)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_layer_is_the_one_that_containerd_makes(
    change: Callable[[Path], None], sides: tuple[Side, Side]
) -> None:
    """Two trees give the same tar stream, byte for byte (but for the time of whiteouts, which only containerd 2.x
    sets to 1970).
    """
    made = []
    for side in sides:
        left, right = trees(side, change)
        layer = await side.make(bind(left), bind(right), media_type=TAR)
        made.append(without_times(await side.read(layer.digest)))
    if made[0] != made[1]:
        listed = [
            [(m.name, m.type, m.size, m.mtime, m.mode, m.uid, m.linkname) for m in members(data)] for data in made
        ]
        assert listed[0] == listed[1]
    assert made[0] == made[1]


@pytest.mark.parametrize("seed", range(25))
async def test_random_trees_give_the_layer_that_containerd_makes(seed: int, sides: tuple[Side, Side]) -> None:
    """The trees have few names and all kinds of entries, some linked with each other."""

    def grow(salt: int) -> Callable[[Path], None]:
        def inner(root: Path) -> None:
            rng = random.Random(seed * 1000 + salt)
            names = ["a", "b", "c", "a/b", "a/c", "b/a", "a/b/c", "c/a/b", "b.x", "a-b/c"]
            for _ in range(12):
                path = root / rng.choice(names)
                if any(
                    (p.exists() and not p.is_dir()) or p.is_symlink()
                    for p in path.parents
                    if p != root and root in p.parents
                ):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                if os.path.lexists(path):
                    if path.is_dir() and not path.is_symlink():
                        if rng.random() < 0.5:
                            continue
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                match rng.randint(0, 6):
                    case 0 | 1:
                        put(path, bytes([rng.randint(0, 1)]) * rng.choice((0, 5)), when=OLD + rng.randint(0, 1))
                    case 2:
                        path.mkdir()
                    case 3:
                        path.symlink_to(rng.choice("xy"))
                    case 4:
                        os.mkfifo(path)
                    case 5:
                        files = [p for p in sorted(root.rglob("*")) if p.is_file() and not p.is_symlink()]
                        if files:
                            os.link(rng.choice(files), path)
                    case _:
                        continue
            for found in root.rglob("*"):
                if not found.is_file() or found.is_symlink():
                    os.utime(found, (OLD, OLD), follow_symlinks=False)

        return inner

    made = []
    for side in sides:
        left, right = trees(side, grow(1), grow(0))
        made.append(without_times(await side.read((await side.make(bind(left), bind(right), media_type=TAR)).digest)))
    assert made[0] == made[1]
