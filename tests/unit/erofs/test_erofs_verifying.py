"""Damage of layers is found, and named with the layer and what to do."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from services.snapshots.erofs import chaining, place, verifying
from services.snapshots.erofs.place import ABOUT, DATA, INDEX, LAYER, WRITTEN
from tests.suites.diff_tars import directory, reg, whiteout
from tests.suites.diff_tars import tar as tar_of

BASE = tar_of(directory(b"d", 0o2750, gid=50), reg(b"d/one", b"1" * 700))
UPON = tar_of(whiteout(b"d/gone"), reg(b"d/two", b"2" * 1000), end=b"")[:-10]
"""It does not name its directory, and ends within a block."""


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def unpacked(at: Path, layer: bytes, lowers: Sequence[Path] = ()) -> Path:
    """Unpack a layer alone, as a snapshot in ``at``, and make it one on top of others."""
    (at / "fs").mkdir(parents=True)
    (at / LAYER).mkdir()
    lowest = not lowers
    place.unpack([layer], str(at / "fs"), (), str(at / LAYER), lowest=lowest, digest=lambda: digest(layer))
    assert chaining.chained(str(at / LAYER), indices(lowers), fixed=False)
    return at


def indices(lowers: Sequence[Path]) -> list[str]:
    return [str(each / LAYER / INDEX) for each in lowers]


def damage(at: Path, lowers: Sequence[Path] = ()) -> str | None:
    return verifying.damage(str(at / LAYER), str(at / "fs"), indices(lowers))


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path]:
    """A layer, and one upon it whose index has an inode by what the other has."""
    base = unpacked(tmp_path / "1", BASE)
    return unpacked(tmp_path / "2", UPON, [base]), base


def changed(at: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 4
        path.write_bytes(data)

    return change


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def test_a_layer_is_found_sound(layers: tuple[Path, Path]) -> None:
    """Alone, and on top of another."""
    upon, base = layers
    assert damage(base) == ""
    assert damage(upon, [base]) == ""


@pytest.mark.parametrize(
    ("spoil", "name", "words"),
    [
        (changed(600), DATA, r"data is sha256:[0-9a-f]{64};"),
        (changed(-1), DATA, "data has other bytes than zeros after the first 2038;"),
        (cut, DATA, "data has 2047 bytes, not 2048;"),
        (Path.unlink, DATA, "data: no such file or directory;"),
        (changed(1100), INDEX, "index has other bytes from 1100 on;"),
        (changed(-1), INDEX, "index has other bytes from [0-9]+ on;"),
        (cut, INDEX, "index has other bytes from [0-9]+ on;"),
        (longer, INDEX, "index has more than [0-9]+ bytes;"),
        (Path.unlink, INDEX, "index: no such file or directory;"),
    ],
)
def test_damage_is_named(layers: tuple[Path, Path], spoil: Callable[[Path], None], name: str, words: str) -> None:
    """With the layer, its file, and what to do."""
    upon, base = layers
    spoil(upon / LAYER / name)
    found = damage(upon, [base])
    assert found
    layer = re.escape(f"layer {digest(UPON)} in {upon}/erofs")
    assert re.fullmatch(f"{layer} is damaged: {re.escape(str(upon))}/erofs/{words} {verifying.PULL_AGAIN}", found), (
        found
    )


def test_damage_of_what_is_known_of_a_layer_is_named(layers: tuple[Path, Path]) -> None:
    """Its diff id cannot be told then."""
    _, base = layers
    (base / LAYER / ABOUT).write_bytes(b"nothing")
    found = damage(base)
    assert found
    assert found.startswith(
        f"the layer in {base}/erofs is damaged: {base}/erofs/about: it is not what was written there;"
    )


def test_an_index_for_other_layers_is_found(layers: tuple[Path, Path]) -> None:
    """It has another inode for the directory that the layer does not name."""
    upon, _ = layers
    found = damage(upon)
    assert found
    assert "/index has other bytes from " in found


def test_files_of_the_layers_below_are_closed(layers: tuple[Path, Path]) -> None:
    """A node has many layers, and each is on top of others."""
    upon, base = layers
    before = os.listdir("/proc/self/fd")
    assert damage(upon, [base]) == ""
    changed(1100)(upon / LAYER / INDEX)
    assert damage(upon, [base])
    assert os.listdir("/proc/self/fd") == before


def test_what_was_written_by_hand_cannot_be_verified(tmp_path: Path) -> None:
    """Nobody knows what it should be."""
    (tmp_path / LAYER).mkdir()
    (tmp_path / LAYER / WRITTEN).touch()
    assert damage(tmp_path) is None
