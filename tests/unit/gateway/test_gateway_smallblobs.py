"""The small blobs that the gateway keeps in memory."""

from __future__ import annotations

import hashlib

from gateway.smallblobs import SmallBlobs


def named(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def test_a_blob_is_kept_by_the_digest_of_its_bytes() -> None:
    """The digest may be of any algorithm that containerd accepts; bytes that do not match it are not kept."""
    blobs = SmallBlobs()
    for algorithm in ("sha256", "sha384", "sha512"):
        digest = named(b"a", algorithm)
        assert blobs.put(digest, b"a")
        assert blobs.get(digest) == b"a"
    assert not blobs.put(named(b"b"), b"c")
    assert blobs.get(named(b"b")) is None
    assert not blobs.put("md5:" + hashlib.md5(b"a").hexdigest(), b"a")


def test_large_ones_are_not_kept_and_of_many_those_used_last() -> None:
    """There is a limit for each blob and one for all together."""
    blobs = SmallBlobs(largest=10, limit=30)
    assert not blobs.put(named(b"x" * 11), b"x" * 11)
    data = [bytes([65 + i]) * 10 for i in range(4)]
    for each in data[:3]:
        assert blobs.put(named(each), each)
    assert blobs.put(named(data[0]), data[0])  # again: it counts once
    assert blobs.get(named(data[0])) == data[0]
    assert blobs.put(named(data[3]), data[3])
    assert [blobs.get(named(each)) is not None for each in data] == [True, False, True, True]
