"""The same layers give the same tree, however they are unpacked: by Transfer, side by side, by our Diff.Apply, layer
upon layer, both also onto erofs, which makes no files, and by containerd.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings

from deploy.samples import image
from services.kit import errors
from services.kit.rpc import Channel
from services.oci.digests import chain_ids, digest_of
from services.oci.media_types import EROFS_LAYER
from tests.fake_registry import FakeRegistry
from tests.peer import containerd, program2
from tests.pulls import Client
from tests.suites.diff_chains import DEFAULT_ACL, Applying, Entry, Importing, Maker, Pulling, Snapshots, chains, layers
from tests.suites.diff_sides import Node as File
from tests.suites.diff_sides import differences, outcome
from tests.support import Node, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root]

CHAINS = int(os.environ.get("LAYER_CHAINS", "17"))
EROFS = 8
"""One of so many chains is unpacked onto erofs as well, which takes longer than all others together: in memory, each
layer's mount takes two loop devices.
"""


@pytest.fixture(scope="module")
def peers() -> Iterator[dict[str, Path]]:
    """Sockets of Debian's containerd, and of a containerd 2 if there is one."""
    with contextlib.ExitStack() as running:
        found = {}
        for name, program in (("containerd", "containerd"), ("containerd 2", program2("containerd"))):
            if program:
                found[name] = running.enter_context(containerd(running.enter_context(short_directory()), program))
        yield found


@contextlib.asynccontextmanager
async def everybody(node: Node, peers: dict[str, Path], place: Path) -> AsyncIterator[dict[str, Maker]]:
    """The makers of trees; the first is the reference."""
    async with contextlib.AsyncExitStack() as stack:
        ours, *theirs = [
            await stack.enter_async_context(Channel(path, pings="never")) for path in (node.socket, *peers.values())
        ]
        registry, writing = await stack.enter_async_context(FakeRegistry()), asyncio.Lock()
        yield {
            **{
                name: Applying(channel, place / name.replace(" ", ""))
                for name, channel in zip(peers, theirs, strict=True)
            },
            "Diff.Apply": Applying(ours, place / "apply", writing=writing),
            "erofs": Applying(ours, place / "erofs", "erofs", writing),
            "import": Importing(ours, place / "import"),
            "pull": Pulling(ours, place / "pull", registry),
            "pull onto erofs": Pulling(ours, place / "pullerofs", registry, "erofs"),
        }


async def compare(everybody: dict[str, Maker], chain: list[list[Entry]]) -> dict[bytes, File]:
    """Return the tree that all make of a chain, {} if all refuse it; raise AssertionError if they differ."""
    made = layers(chain)
    found = await asyncio.gather(*(outcome(each.tree(made)) for each in everybody.values()))
    first, *others = [(name, *each) for name, each in zip(everybody, found, strict=True)]
    for name, verdict, tree in others:
        assert verdict == first[1], f"{first[0]}: {first[2]}\n{name}: {tree}"
        if verdict == "ok":
            wrong = differences(first[2], without_times(tree, first[2]))
            assert not wrong, f"{first[0]}, and {name}:\n" + "\n".join(wrong)
    return first[2] if first[1] == "ok" else {}


def without_times(found: dict[bytes, File], right: dict[bytes, File]) -> dict[bytes, File]:
    """Return a tree without the times of directories that are new in the other: no layer sets these."""

    def aside(name: bytes, file: File) -> File:
        other = right.get(name)
        if other is not None and stat.S_ISDIR(file.mode) and other.modified is None:
            return File(file.mode, file.owner, file.device, file.size, file.content, None, file.links, file.xattrs)
        return file

    return {name: aside(name, file) for name, file in found.items()}


async def test_a_directory_that_no_layer_names_inherits_the_group(
    node: Node, peers: dict[str, Path], place: Path
) -> None:
    """As in Debian's /usr/local/lib/python3*, 2775 root:staff, with layers of files below it and without
    directories.
    """
    python = b"usr/local/lib/python3"
    lower = [Entry("directory", name) for name in (b"usr", b"usr/local", b"usr/local/lib")] + [
        Entry("directory", python, b"", (("mode", 0o2775), ("gid", 50)))
    ]
    async with everybody(node, peers, place) as all_of_them:
        found = await compare(
            all_of_them, [lower, [Entry("file", python + b"/dist/one/x")], [Entry("file", python + b"/dist/two")]]
        )
    assert [found[python + name].owner for name in (b"/dist", b"/dist/one")] == [(0, 50), (0, 0)]


async def test_a_directory_that_is_named_last_keeps_attributes_of_the_layers_below(
    node: Node, peers: dict[str, Path], place: Path
) -> None:
    """The directory exists already when the layer names it."""
    lower = Entry("directory", b"a", b"", (("mode", 0o2775), ("gid", 50)), ((b"user.one", b"1"),))
    async with everybody(node, peers, place) as all_of_them:
        found = await compare(
            all_of_them,
            [[], [lower], [Entry("file", b"a/b/f"), Entry("directory", b"a", b"", (("mode", 0o700), ("gid", 7)))]],
        )
    assert found[b"a"].xattrs == (("user.one", b"1"),)
    assert [found[name].owner[1] for name in (b"a", b"a/b")] == [7, 50]


async def test_files_in_a_directory_inherit_its_default_acl(node: Node, peers: dict[str, Path], place: Path) -> None:
    """Files inherit it too, and the layers above see it."""
    lower = Entry("directory", b"a", b"", (), ((b"system.posix_acl_default", DEFAULT_ACL),))
    async with everybody(node, peers, place) as all_of_them:
        found = await compare(all_of_them, [[], [lower], [Entry("file", b"a/b/f")], [Entry("file", b"a/b/g")]])
    assert all("system.posix_acl_access" in dict(found[name].xattrs) for name in (b"a/b", b"a/b/f", b"a/b/g"))


async def test_an_error_names_the_refused_entry(node: Node, place: Path) -> None:
    """It names the layer and the path in it."""
    async with Channel(node.socket) as channel:
        made = layers([[], [Entry("file", b"a")], [Entry("file", b"a/b/f")]])
        verdict, error = await outcome(Importing(channel, place / "import").tree(made))
    assert verdict == "refused"
    assert re.search(
        r'layer sha256:[0-9a-f]{64} to "sha256:[0-9a-f]{64}": directory "a/b": not a directory$', str(error)
    ), error


@pytest.mark.parametrize("compression", ["", "+zstd"])
async def test_a_layer_that_is_an_erofs_image(node: Node, place: Path, compression: str) -> None:
    """It is mounted below a layer that is a tar, onto erofs; overlayfs cannot have it."""
    (place / "tree/d").mkdir(parents=True, mode=0o711)
    (place / "tree/d/a").write_bytes(compression.encode())
    (place / "tree/d").chmod(0o711)
    subprocess.run(["mkfs.erofs", "--quiet", str(place / "image"), str(place / "tree")], check=True)
    packed = (place / "image").read_bytes()
    made = [packed, *layers([[Entry("file", b"d/b")]])]
    box = image(made)
    manifest = json.loads(box.blobs[box.digest])
    blob = zstandard.compress(packed) if compression else packed
    manifest["layers"][0] = {"mediaType": EROFS_LAYER + compression, "digest": digest_of(blob), "size": len(blob)}
    data = json.dumps(manifest).encode()
    box = dataclasses.replace(
        box, digest=digest_of(data), blobs={**box.blobs, digest_of(data): data, digest_of(blob): blob}
    )
    async with Channel(node.socket) as channel, FakeRegistry() as registry:
        client = Client(channel, "pulls")
        reference = registry.add(box, f"image{len(compression)}:1")
        (place / "m").mkdir()
        with pytest.raises(errors.Unknown, match="can be unpacked by the snapshotter erofs only"):
            await client.pull(reference)
        await client.pull(reference, snapshotter="erofs")
        found = await Snapshots(channel, "pulls", place / "m", "erofs").tree(chain_ids(list(map(digest_of, made)))[-1])
    assert found[b"d"].mode & 0o7777 == 0o711
    assert {b"d/a", b"d/b"} <= found.keys()


@pytest.mark.once
@pytest.mark.timeout(300 + 10 * CHAINS)
def test_random_chains_become_what_containerd_makes_of_them(node: Node, peers: dict[str, Path], place: Path) -> None:
    """Their entries are of all kinds and have few names."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        all_of_them = runner.run(stack.enter_async_context(everybody(node, peers, place)))
        made: list[dict[bytes, File]] = []

        @settings(
            max_examples=CHAINS,
            derandomize=True,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(chains())
        def check(chain: list[list[Entry]]) -> None:
            here = all_of_them if len(made) % EROFS == 0 else {n: m for n, m in all_of_them.items() if "erofs" not in n}
            made.append(runner.run(compare(here, chain)))

        try:
            check()
        finally:
            runner.run(stack.aclose())
        assert sum(map(bool, made)) > CHAINS / 5  # about half of them are no errors
