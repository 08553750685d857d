"""Mounts of which others are to be made first, as containerd's mount manager understands them."""

from __future__ import annotations

import pytest

from services.oci.mounts import Mount
from services.oci.prepared import PreparedError, filled, first, needed, type_of

ONE, TWO = (Mount("erofs", f"/{name}/index", ("ro", "loop", f"device=/{name}/data")) for name in ("one", "two"))
ALONE = Mount("erofs", "/image", ("ro", "loop"))
ROOT = Mount("format/mkdir/overlay", "overlay", ("upperdir=/u", "workdir=/w", "lowerdir={{ overlay 0 1 }}"))
PLAIN = Mount("overlay", "overlay", ("lowerdir=/a:/b",))
MADE = [(ONE, "/m/0"), (TWO, "/m/1"), (Mount("bind", "/source", (), "target"), "/m/2")]


@pytest.mark.parametrize(
    ("mounts", "allowed", "expected"),
    [
        ([PLAIN], [], 0),
        ([], [], 0),
        ([ALONE], [], 0),
        ([ONE], [], 1),
        ([ONE, TWO, ROOT], [], 2),
        ([ALONE, ALONE, ROOT], ["format/*", "mkdir/*"], 2),
        ([ONE, TWO, ROOT], ["erofs"], 2),
        ([ONE, TWO, ROOT], ["erofs", "format/*"], 2),
        ([ONE, TWO, ROOT], ["erofs", "format/*", "mkdir/*"], 0),
        ([ONE, TWO, ROOT], ["erofs", "format/mkdir/overlay"], 0),
        ([Mount("some/thing", "x")], [], 0),
    ],
)
def test_what_somebody_has_to_make_first(mounts: list[Mount], allowed: list[str], expected: int) -> None:
    """All before what a shim does not take. A shim of runc mounts a single image by itself."""
    assert first(mounts, allowed) == expected
    assert needed(mounts, allowed) is bool(expected)


def test_a_mount_without_others_before_it_is_to_be_filled() -> None:
    """Its type says so, and there is nothing to be made."""
    alone = [Mount("mkdir/overlay", "overlay", ("lowerdir=/a:/b",))]
    assert (first(alone), needed(alone)) == (0, True)
    assert filled(alone[0], []) == PLAIN


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lowerdir={{ overlay 0 1 }}", "lowerdir=/m/0:/m/1"),
        ("lowerdir={{ overlay 1 0 }}", "lowerdir=/m/1:/m/0"),
        ("lowerdir=/x:{{mount 1}}/y", "lowerdir=/x:/m/1/y"),
        ("a={{ source 2 }},{{target 2}}", "a=/source,target"),
        ("plain", "plain"),
    ],
)
def test_templates(text: str, expected: str) -> None:
    """Those of containerd, in source, target and options."""
    assert filled(Mount("format/mkdir/overlay", text, (text,), text), MADE) == Mount(
        "overlay", expected, (expected,), expected
    )
    assert filled(Mount("mkdir/overlay", text, (text,), text), MADE) == Mount("overlay", text, (text,), text)
    assert filled(Mount("overlay", text, (text,), text), MADE) == Mount("overlay", text, (text,), text)


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount("format/overlay", "{{ mount 3 }}"), "index out of bounds: 3, has 3 active mounts"),
        (Mount("format/overlay", "{{ overlay 3 0 }}"), "index out of bounds: 3, has 3 active mounts"),
        (Mount("format/overlay", "{{ overlay 0 999999 }}"), "index out of bounds: 999999, has 3 active mounts"),
        (Mount("format/overlay", "{{ mount -1 }}"), "a template that is not known"),
        (Mount("format/overlay", "{{ secrets }}"), "a template that is not known"),
        (Mount("format/overlay", "{{ mount 0 }}{{"), "a template that is not known"),
        (Mount("mkfs/ext4", "/x", ("X-containerd.mkfs.fs=ext4",)), "mount type mkfs/ext4: mkfs: not implemented"),
        (Mount("mkdir/bind", "/x", ("X-containerd.mkdir.path=/x:0755",)), "X-containerd.mkdir.path=/x:0755: not impl"),
    ],
)
def test_what_cannot_be_prepared_is_named(mount: Mount, words: str) -> None:
    """And nothing is made of it."""
    with pytest.raises(PreparedError, match=words):
        filled(mount, MADE)


def test_types() -> None:
    """What the kernel gets, however much is to be done before."""
    types = ("overlay", "format/mkdir/overlay", "mkfs/ext4", "format", "fuse.x/y", "")
    assert [type_of(Mount(each, "")) for each in types] == ["overlay", "overlay", "ext4", "format", "fuse.x/y", ""]
