"""Indices, byte for byte: as the strict reader of the tests reads them, and as fsck.erofs does."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.kit import tar
from services.snapshots.diff.extract import EntryError
from services.snapshots.erofs import layer
from services.snapshots.erofs.image import BLOCK, ImageError, Node, image
from services.snapshots.erofs.layer import LayerTree
from tests.suites import diff_layers, diff_sides
from tests.suites.diff_chains import DEFAULT_ACL
from tests.suites.diff_layers import CAPABILITY
from tests.suites.diff_tars import Case, device, directory, link, pax, reg, symlink
from tests.suites.diff_tars import tar as tar_of
from tests.suites.erofs_images import Image, WrongError, content
from tests.support import directory_with_attributes
from tests.unit.erofs.test_erofs_layers import extracted

pytestmark = pytest.mark.root  # it changes its root directory

SMALL = tar_of(
    pax({b"SCHILY.xattr.user.a": b"12345", b"SCHILY.xattr.security.b": b""}),
    directory(b"d"),
    reg(b"d/file", b"x" * 700),
    link(b"d/link", b"d/file"),
    symlink(b"symlink", b"d/file"),
    pax({b"linkpath": b"t" * 600}),
    symlink(b"long", b""),
    device(b"null", b"3", 1, 3),
    *(reg(b"e/%0130d" % number) for number in range(4)),
)


def indexed(stream: bytes) -> tuple[bytes, bytes]:
    """The index, and the layer as long as whole blocks. EntryError, ImageError."""
    tree = LayerTree()
    tree.read(tar.Reader(tar.Stream([stream])))
    blob = stream.ljust(max(BLOCK, len(stream) + -len(stream) % BLOCK), b"\0")
    return b"".join(image(tree.root, len(blob), lambda at, length: blob[at : at + length])), blob


@pytest.mark.parametrize("case", diff_layers.ALL, ids=lambda case: case.name)
def test_each_byte_of_an_index_means_what_it_says(case: Case) -> None:
    """Each field has the one value that it can have, tables are within bounds, names are in order, nothing lies on
    something else.
    """
    try:
        made, blob = indexed(case.layer)
    except EntryError:
        return  # which one, test_erofs_layers.py compares
    Image(made, len(blob)).tree(lambda at, length: blob[at : at + length])


def test_no_byte_can_change_unseen() -> None:
    """The reader above finds it, or reads another tree: so it reads every byte."""
    made, blob = indexed(SMALL)

    def read(data: bytes) -> object:
        return Image(data, len(blob)).tree(lambda at, length: blob[at : at + length])

    right = read(made)
    unseen = []
    for at in range(len(made)):
        changed = bytearray(made)
        changed[at] ^= 1 << at % 8
        try:
            if read(bytes(changed)) == right:
                unseen.append(at)
        except (WrongError, struct.error, OverflowError):
            continue
    # a tree does not tell the mode, the owner and the time of its root
    root = 1536 + 32 * struct.unpack_from("<H", made, 1024 + 14)[0]
    assert {at - root for at in unseen} <= {4, 5, *range(24, 44)}, unseen


def fsck() -> tuple[list[str], dict[str, str]]:
    """The program of erofs-utils 1.8 or newer, and its environment. Older ones know no blocks of 512 bytes. Libraries that
    Debian 12 does not have may be unpacked beside it.
    """
    given = os.environ.get("SPLITD_TEST_EROFS")
    if not given:
        pytest.skip(
            "no fsck.erofs that reads such images: name the directory of trixie's erofs-utils in SPLITD_TEST_EROFS"
        )
    path = Path(given) / "usr/bin/fsck.erofs"
    if not path.exists():
        raise FileNotFoundError(f"SPLITD_TEST_EROFS={given} has no usr/bin/fsck.erofs")
    return [str(path)], {**os.environ, "LD_LIBRARY_PATH": f"{given}/usr/lib/x86_64-linux-gnu"}


def test_fsck_finds_no_fault(tmp_path: Path) -> None:
    """In the index of any layer of the suite; and it does in one whose root is elsewhere."""
    (program, environment), index, data = fsck(), tmp_path / "index", tmp_path / "data"
    command = [*program, f"--device={data}", "--extract", str(index)]
    checked = 0
    for case in diff_layers.ALL:
        try:
            made, blob = indexed(case.layer)
        except EntryError:
            continue
        index.write_bytes(made)
        data.write_bytes(blob)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert not done.returncode, f"{case.name}: {done.stdout}{done.stderr}"
        checked += 1
    assert checked > 100
    index.write_bytes(made[:1038] + b"\xff\x0f" + made[1040:])
    assert subprocess.run(command, capture_output=True, check=False, env=environment).returncode


def sparse(size: int, *pieces: tuple[int, int, int]) -> Node:
    """A root with one file."""
    root, file = Node(0o40755), Node(0o100644)
    root.children, root.links = {b"file": file}, 2
    file.size, file.pieces = size, pieces
    return root


@pytest.mark.parametrize("size", [(1 << 56) + 1, (1 << 63) - 1])
@pytest.mark.parametrize("pieces", [(), ((0, 0, 512),)])
def test_a_file_that_no_table_can_have_is_refused(size: int, pieces: tuple[tuple[int, int, int], ...]) -> None:
    """A chunk has at most 2**31 blocks, and a file 65,536 chunks."""
    with pytest.raises(ImageError, match="a file of [0-9]+ bytes"):
        list(image(sparse(size, *pieces), 512, lambda at, length: bytes(length)))


@pytest.mark.parametrize("size", [1, 513, 1 << 20, 1 << 40, 1 << 56])
def test_holes_are_as_large_as_they_are(size: int) -> None:
    """Up to the largest file."""
    made = b"".join(image(sparse(size), 512, lambda at, length: bytes(length)))
    assert Image(made, 512).tree(lambda at, length: b"")[b"file"].size == size


def test_tables_are_bounded() -> None:
    """A header of 512 bytes can make a table of half a megabyte."""
    root = Node(0o40755)
    root.children, root.links = {}, 2
    for number in range(33):
        file = Node(0o100644)
        file.size, file.pieces = 1 << 25, [(512, 0, 512)]
        root.children[b"%d" % number] = file
    with pytest.raises(ImageError, match="sparse files of too many pieces"):
        list(image(root, 512, lambda at, length: bytes(length)))


def test_attributes_are_bounded() -> None:
    """A few bytes can make each file inherit an access control list of 64 KiB."""
    root, value = Node(0o40755), bytes(65_000)
    root.children, root.links = {}, 2
    for number in range(530):
        file = root.children[b"%04d" % number] = Node(0o100644)
        file.xattrs = {b"user.%d" % each: value for each in range(4)}
    with pytest.raises(ImageError, match="more than 128 MiB of extended attributes"):
        list(image(root, 512, lambda at, length: bytes(length)))


ACL = b"SCHILY.xattr.system.posix_acl_default"


@pytest.mark.parametrize(
    "members",
    [
        [reg(b"/".join([b"d"] * 50))],
        [pax({b"SCHILY.xattr.user.%d" % number: b"" for number in range(8)}), reg(b"a")],
        [pax({b"GNU.sparse.map": b",".join(b"%d,1" % at for at in range(0, 20, 2)), b"GNU.sparse.size": b"100",
              b"GNU.sparse.numblocks": b"10"}), reg(b"a", bytes(10))],
        [pax({ACL: DEFAULT_ACL}), directory(b"d"), *(reg(b"d/%d" % number) for number in range(10))],
    ],
    ids=["unnamed directories", "attributes", "pieces", "inherited lists"],
)  # fmt: skip
def test_whatever_is_kept_in_memory_counts(members: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only what an entry says itself."""
    indexed(tar_of(*members))
    monkeypatch.setattr(layer, "BYTES", 1000)
    with pytest.raises(EntryError, match="which an erofs layer cannot have"):
        indexed(tar_of(*members))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"user.", b"1"),
        (b"user." + b"k" * 251, b"1"),
        (b"other." + b"k" * 250, b"1"),
        (b"other", b"1" * 70_000),
        (b"security.", b"1"),
        (b"security.capability", b"\n" + CAPABILITY[1:]),
        (b"security.capability", CAPABILITY[:1] + b"\1" + CAPABILITY[2:]),
        (b"security.capability", CAPABILITY[:3] + b"\3" + CAPABILITY[4:] + b"\xff" * 4),
        (b"system.posix_acl_access", b"\1\0\0\0"),
        (b"system.posix_acl_access", b"70000"),
        (b"system.posix_acl_access", b"700"),
        (b"system.posix_acl_default", b"70000"),
    ],
)
@pytest.mark.parametrize("member", [reg(b"a"), directory(b"a"), symlink(b"a", b"b")], ids=["file", "directory", "link"])
def test_odd_attributes_are_what_the_kernel_makes_of_them(key: bytes, value: bytes, member: bytes) -> None:
    """It refuses some, and lacks others, which are left out."""
    stream = tar_of(pax({b"SCHILY.xattr." + key: value}), member)
    with directory_with_attributes() as place:
        said = extracted(stream, place / "tree")
        if said:
            with pytest.raises(EntryError, match=f"^{re.escape(said)}$"):
                indexed(stream)
            return
        made = diff_sides.tree(place / "tree")[b"a"]
    index, blob = indexed(stream)
    found = Image(index, len(blob)).tree(lambda at, length: blob[at : at + length])[b"a"]
    assert (found.mode, found.xattrs) == (made.mode, made.xattrs)


def test_a_name_with_a_zero_byte_is_refused() -> None:
    """A sparse file's name may come from a record that Go does not look at."""
    records = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": b"a\0b",
        b"GNU.sparse.realsize": b"0",
    }
    with pytest.raises(EntryError, match="invalid tar header"):
        indexed(tar_of(pax(records), reg(b"a", b"0\n" + bytes(510))))


class Counted(list[tuple[int, int, int]]):
    """Pieces of a file, and how often one was looked at."""

    looked = 0

    def __getitem__(self, index: Any) -> Any:
        self.looked += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        self.looked += len(self)
        return super().__iter__()


def test_each_piece_that_is_copied_is_found_at_once() -> None:
    """A file may have a hundred thousand, none of them at a block."""
    count = 2000
    pieces = Counted((1024 * number + 7, 512 * number, 300) for number in range(count))
    root, data = sparse(1024 * count), os.urandom(512 * count)
    assert root.children is not None
    root.children[b"file"].pieces = pieces
    made = b"".join(image(root, 512 * count, lambda at, length: data[at : at + length]))
    assert pieces.looked < 40 * count
    found = Image(made, len(data)).tree(lambda at, length: data[at : at + length])
    right = [(1024 * number + 7, data[512 * number : 512 * number + 300]) for number in range(count)]
    assert found[b"file"].content == content(right)
