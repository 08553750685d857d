"""A node in its fleet: what etcd is told of it, and what it says of the others.

Below the prefix, all keys have the node's lease, and values are JSON with a version:

- ``nodes/NODE``: where its peer server is;
- ``has/DIGEST/NODE``: a blob, its size, and how much of it is there;
- ``fetching/DIGEST``: the node that fetches it from a registry;
- images and containers: see ``told.py``.

The keys that should be there are kept here. Those that changed since they were written go to etcd together, some times
a second at most; what etcd has is not written again. With a new lease all are written. Nothing waits for etcd but the
answer to a claim, and whoever asks for that has a limit.

A claim is written at once, if nobody has it: for this node, or in the place of another that gives it nothing. So it may
have passed to another node by the time that it is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Any

from services.etcd.store import LIMIT, Committed, Delete, Etcd, KeyValue, Mod, Operation, Put, size_of
from services.fleet import told
from services.fleet.arriving import Arriving, Part
from services.fleet.store import NOBODY, PEERS, Claim, Container, Image, Peer, Standing, Target, agreed
from services.fleet.told import Told
from services.kit import errors, identifiers, loops
from services.oci.digests import Digest

log = logging.getLogger(__name__)

TTL = 15.0
"""Seconds after which the others take a silent node for gone."""
BLOBS = 100_000
"""Blobs of a node that the others are told of, at most."""
BATCH = 1000
"""Keys that are written at once, at most; they are below half of what a transaction may have."""
QUIET = 0.25
"""Seconds from one write to etcd to the next."""
FIRST, LONGEST = 0.5, 5.0
"""Seconds until etcd is tried again after a failure: at first, and at most."""
NODES = 1000
"""Nodes of which it is asked what they have as an image."""
STEPS = 8
"""How often it is told that a blob has grown, at most: who reads it learns that from the bytes."""
TRIES = 4
"""How often a claim is tried while others take it or leave it."""
LOOKS, LOOK = 5, 0.2
"""How often it is looked where a blob arrives whose claim does not say so, and the seconds in between."""


class FleetNode:
    """A ``Fleet``, by an etcd. ``address`` is where peers reach it, empty if it serves nothing (yet)."""

    def __init__(
        self,
        etcd: Etcd,
        prefix: str,
        node: str,
        address: str,
        namespaces: Collection[str],
        version: str = "",
        identity: str = "",
        *,
        quiet: float = QUIET,
    ) -> None:
        identifiers.validate(node)
        self.node = node
        self.address = address
        self.namespaces = frozenset(namespaces)
        self.arriving = Arriving()
        self.trouble = "etcd was not reached yet"
        """Why this node is not in the fleet now; else empty."""
        self.left_out = 0
        """Blobs above the limit."""
        self._etcd = etcd
        self._quiet = quiet
        self._prefix = prefix.rstrip("/") + "/"
        self._lease = 0
        self._wanted: dict[bytes, bytes] = {}
        self._written: dict[bytes, bytes] = {}
        self._changed: dict[bytes, None] = {}
        self._claims: dict[bytes, int] = {}
        """The revision of each claim that this node has; 0: it may have it."""
        self._ended: dict[bytes, int] = {}
        """The same of those that are over, and are still to be taken out of etcd."""
        self._wake = asyncio.Event()
        self._blobs: dict[str, int] = {}
        self._fetches: dict[str, LocalFetch] = {}
        """The fetch of each digest whose bytes peers may read."""
        self._images = Told(self._want, told.IMAGES)
        self._containers = Told(self._want, told.CONTAINERS)
        self._me = self._key("nodes", node)
        self._own = {"address": address, "since": time.time_ns(), "version": version, "id": identity}
        """What the node says of itself. ``id`` is the same for all processes of this node, so one that was killed
        leaves its name to the next.
        """
        self._want(self._me, self._own)

    def serve(self, address: str) -> None:
        """Peers reach this node at ``address`` from now on; empty: nowhere."""
        if address == self.address:
            return
        self.address = address
        self._own = {**self._own, "address": address}
        self._want(self._me, self._own)
        for digest in {*self._blobs, *self._fetches}:
            self._tell(digest)

    def _key(self, *parts: str) -> bytes:
        return (self._prefix + "/".join(parts)).encode()

    def key(self, *parts: str) -> bytes:
        """A key of the fleet."""
        return self._key(*parts)

    @property
    def etcd(self) -> Etcd:
        """Where the keys are."""
        return self._etcd

    def tell(self, value: Mapping[str, Any] | None, *parts: str) -> None:
        """Let etcd have this value under the key of ``parts`` while this node is in the fleet; None: no such key."""
        self._want(self._key(*parts), value)

    def _want(self, key: bytes, value: Mapping[str, Any] | None) -> None:
        """Let etcd have this value, or no such key."""
        text = None if value is None else json.dumps({"v": 1, **value}, separators=(",", ":")).encode()
        if text == self._wanted.get(key):
            return
        if text is None:
            del self._wanted[key]
        else:
            self._wanted[key] = text
        self._changed[key] = None
        self._wake.set()

    # ------------------------------------------------------------------------------------------ what etcd is told

    async def keep(self) -> None:
        """Be in the fleet, until cancelled. It is a loop of the process."""
        pause, away = FIRST, False
        while True:
            try:
                async with self._etcd.lease(TTL) as lease:
                    await self._enter(lease.id)
                    self._lease, self.trouble, pause = lease.id, "", FIRST
                    if away:
                        log.info("this node is in the fleet again")
                    away = False
                    losing = loops.task("the lease of this node", self._until(lease.lost))
                    try:
                        while not lease.lost.is_set():
                            await self._wake.wait()
                            await self._write(lease.id)
                            await asyncio.sleep(self._quiet)
                    finally:
                        self._lease = 0
                        losing.cancel()
                        await asyncio.wait((losing,))
                    self.trouble = "its lease has ended"
            except errors.NodeError as error:
                if not away:
                    log.warning("this node is not in the fleet: %s", error)
                away, self.trouble = True, str(error)
            await asyncio.sleep(pause * (0.8 + secrets.randbelow(400) / 1000))
            pause = min(2 * pause, LONGEST)

    async def _until(self, lost: asyncio.Event) -> None:
        await lost.wait()
        self._wake.set()

    async def _enter(self, lease: int) -> None:
        """Take the node's name with a new lease. AlreadyExists if another has it."""
        put = Put(self._me, self._wanted[self._me], lease)
        if not isinstance(await self._etcd.commit([put], [Mod(self._me, 0)]), Committed):
            found = await self._etcd.get(self._me)
            ours = self._own["id"] and found is not None and told.read(found).get("id") == self._own["id"]
            if found is not None and found.value != put.value and not ours:
                raise errors.AlreadyExists(
                    f"node {self.node} at {told.read(found).get('address') or 'no address'} is in the fleet: choose "
                    f"another [fleet] name, or wait {TTL:g} s for the end of one that was killed"
                )
            await self._etcd.commit([put])
        self._written = {self._me: put.value}
        self._changed = dict.fromkeys(self._wanted)
        self._wake.set()
        for key in list(self._claims):
            if key not in self._claims:
                continue  # released meanwhile
            self._claims[key] = 0
            if (await self._held(key, lease, (), again=True))[0] != self.node:
                self._claims.pop(key, None)

    async def _write(self, lease: int) -> None:
        """Write what has changed."""
        self._wake.clear()
        while self._changed:
            batch = list(self._changed)[:BATCH]
            operations: list[Operation] = []
            size = 0
            for key in batch:
                value = self._wanted.get(key)
                del self._changed[key]
                if value == self._written.get(key):
                    continue
                if value is None:
                    del self._written[key]  # now: it may be claimed again before the answer is here
                operations.append(Delete(key) if value is None else Put(key, value, lease))
                size += size_of(operations[-1:])
                if size >= LIMIT // 2:
                    break
            if not operations:
                continue
            try:
                await self._etcd.commit(operations)
            except BaseException:
                for each in operations:  # what happened of it is not known
                    self._written.pop(each.key, None)
                    self._changed[each.key] = None
                raise
            for each in operations:
                if isinstance(each, Put):
                    self._written[each.key] = each.value
        for key, mod in list(self._ended.items()):
            await self._end_claim(key, mod)
            if self._ended.get(key) == mod:
                del self._ended[key]

    async def _end_claim(self, key: bytes, mod: int) -> None:
        """Let etcd not have a claim of this node any more."""
        if not mod:
            found = await self._etcd.get(key)
            mod = found.mod if found is not None and told.read(found).get("node") == self.node else 0
        if mod and key not in self._claims:
            await self._etcd.commit([Delete(key)], [Mod(key, mod)])

    def standing(self) -> Standing:
        """How this node stands in the fleet."""
        troubles = (self.trouble,) if self.trouble else ()
        return Standing(self.node, self.address, troubles, len(self._blobs), self.left_out, len(self.arriving))

    def blobs(self, found: Mapping[str, int], more: int = 0) -> None:
        """The shared blobs that this node has now: sizes by digest, and the number of ``more``. The first ``BLOBS`` are
        told.
        """
        kept = dict(list(found.items())[:BLOBS])
        self.left_out = len(found) - len(kept) + more
        before, self._blobs = self._blobs, kept
        for digest in before.keys() - kept.keys():
            self._tell(digest)
        for digest, size in kept.items():
            if before.get(digest) != size:
                self._tell(digest)

    def tell_images(self, found: Iterable[Image]) -> None:
        """The images that this node has now. Those of shared namespaces are told."""
        shared = (image for image in found if image.namespace in self.namespaces)
        keys = ((told.image_key(image), told.image_value(image)) for image in shared)
        self._images.tell({self._key(*key): value for key, value in keys if key is not None})

    def tell_containers(self, found: Iterable[Container]) -> None:
        """The containers that this node has now. Those of shared namespaces are told."""
        shared = (each for each in found if each.namespace in self.namespaces)
        self._containers.tell({self._key(*told.container_key(each)): told.container_value(each) for each in shared})

    def blob(self, digest: str, size: int | None) -> None:
        """One of them has come, or gone (None)."""
        if size is None:
            self._blobs.pop(digest, None)
        elif digest in self._blobs or len(self._blobs) < BLOBS:
            self._blobs[digest] = size
        else:
            self.left_out += 1
        self._tell(digest)

    def _tell(self, digest: str) -> None:
        """Let etcd have what is there of a blob."""
        size = self._blobs.get(digest)
        fetch = self._fetches.get(digest)
        value: dict[str, Any] | None = None
        if size is not None:
            value = {"size": size, "have": size, "address": self.address}
        elif fetch is not None:
            value = {"size": fetch.size, "have": fetch.have, "address": self.address}
        self._want(self._key("has", digest, self.node), value)

    # ------------------------------------------------------------------------------------------ what etcd says

    async def peers(self, digest: Digest) -> Sequence[Peer]:
        """The nodes that have a blob, or a part of it, this one too. Raises what etcd does."""
        async for page in self._etcd.pages(self._key("has", str(digest), ""), count=PEERS):
            return [peer for pair in page.pairs if (peer := _peer(pair)) is not None]
        return []

    async def nodes(self) -> AsyncGenerator[tuple[str, Mapping[str, Any]]]:
        """Each node of the fleet with what it says of itself. Raises what etcd does."""
        prefix = self._key("nodes", "")
        async for page in self._etcd.pages(prefix):
            for pair in page.pairs:
                yield pair.key.removeprefix(prefix).decode(errors="replace"), told.read(pair)

    async def images(self) -> AsyncGenerator[Sequence[Image]]:
        """As ``Overview`` says."""
        prefix = self._key("images", "")
        async for page in self._etcd.pages(prefix):
            read = (told.image(_after(prefix, pair), pair) for pair in page.pairs)
            yield [image for image in read if image is not None]

    async def containers(self) -> AsyncGenerator[Sequence[Container]]:
        """As ``Overview`` says."""
        prefix = self._key("containers", "")
        async for page in self._etcd.pages(prefix):
            read = (told.container(_after(prefix, pair), pair) for pair in page.pairs)
            yield [each for each in read if each is not None]

    async def image(self, namespace: str, name: str) -> Target | None:
        """As ``Fleet`` says."""
        if namespace not in self.namespaces or not self._lease:
            return None
        try:
            return agreed(each for each in await self.having(namespace, name) if each.node != self.node)
        except errors.NodeError as error:
            log.debug("etcd does not say what %s is: %s", name, error)
            return None

    async def having(self, namespace: str, name: str) -> Sequence[Image]:
        """The image ``name`` of each node that has it, this one too. Raises what etcd does."""
        prefix = self._key("images", "")
        async for page in self._etcd.pages(self._key("images", namespace, name, ""), count=NODES):
            read = (told.image(_after(prefix, pair), pair) for pair in page.pairs)
            return [each for each in read if each is not None and each.name == name]
        return []

    async def fetcher(self, digest: Digest) -> str:
        """The node that fetches a blob from a registry; empty: none. Raises what etcd does."""
        found = await self._etcd.get(self._key("fetching", str(digest)))
        return str(told.read(found).get("node", "")) if found else ""

    async def find(self, namespace: str, digest: Digest) -> Sequence[Peer]:
        """As ``Fleet`` says."""
        if namespace not in self.namespaces or not self._lease:
            return []
        try:
            return [peer for peer in await self.peers(digest) if peer.node != self.node and peer.address]
        except errors.NodeError as error:
            log.debug("etcd does not say who has %s: %s", digest, error)
            return []

    @contextlib.asynccontextmanager
    async def fetching(self, namespace: str, digest: Digest, size: int) -> AsyncIterator[LocalFetch]:
        fetch = LocalFetch(self, digest, size, namespace in self.namespaces)
        try:
            yield fetch
        finally:
            fetch.end()

    async def claim(self, digest: Digest, left: Collection[str] = ()) -> Claim:
        """Claim a blob for this node, in the place of ``left`` if need be. The claim lasts until :meth:`release`."""
        key, lease = self._key("fetching", str(digest)), self._lease
        if not lease:
            return NOBODY
        try:
            owner, address = await self._held(key, lease, left)
            if not address and owner not in ("", self.node):
                address = await self._where(digest, owner)
        except BaseException as error:
            self._claims.setdefault(key, 0)
            if not isinstance(error, errors.NodeError):
                raise
            log.debug("%s is not claimed: %s", digest, error)
            return NOBODY
        return Claim(owner, owner in ("", self.node), address)

    async def _where(self, digest: Digest, owner: str) -> str:
        """Where a node gives a blob whose claim does not say so, as those of earlier releases: it tells that once the
        blob arrives. Empty: it does not.
        """
        for _ in range(LOOKS):
            found = await self._etcd.get(self._key("has", str(digest), owner))
            if found is not None:
                return told.text(told.read(found).get("address"))
            await asyncio.sleep(LOOK)
        return ""

    async def _held(self, key: bytes, lease: int, left: Collection[str], *, again: bool = False) -> tuple[str, str]:
        """The node that has a claim, and its address: this node, if it can have it; empty: nobody. ``again``: it has
        had it, and may release it meanwhile.
        """
        said = {"v": 1, "node": self.node, "address": self.address}
        put = Put(key, json.dumps(said, separators=(",", ":")).encode(), lease)
        mod = 0
        for _ in range(TRIES if self.address else 1):
            # who serves nothing would keep the others from fetching it
            if self.address and isinstance(done := await self._etcd.commit([put], [Mod(key, mod)]), Committed):
                if again and key not in self._claims:
                    self._ended[key] = done.revision
                    self._wake.set()
                else:
                    self._claims[key] = done.revision
                return self.node, self.address
            found = await self._etcd.get(key)
            if found is None:
                mod = 0
                continue
            value, mod = told.read(found), found.mod
            owner = told.text(value.get("node"))
            if owner == self.node and self._claims.get(key) == mod:
                return self.node, self.address
            # a claim of a fetch before is written anew, so that the end of that one does not end it
            if owner and owner != self.node and owner not in left:
                return owner, told.text(value.get("address"))
        return "", ""

    def release(self, digest: Digest) -> None:
        """End this node's claim, if it has one."""
        key = self._key("fetching", str(digest))
        if key in self._claims:
            self._ended[key] = self._claims.pop(key)
            self._wake.set()

    def began(self, fetch: LocalFetch) -> bool:
        """Whether peers may read of this fetch; of two of one digest only of the first."""
        return self._fetches.setdefault(str(fetch.digest), fetch) is fetch

    def moved(self, fetch: LocalFetch) -> None:
        """It has more or fewer bytes."""
        self._tell(str(fetch.digest))

    def ended(self, fetch: LocalFetch) -> None:
        """It is over."""
        if self._fetches.get(str(fetch.digest)) is fetch:
            del self._fetches[str(fetch.digest)]
            self.arriving.end(fetch.digest)
            self._tell(str(fetch.digest))


class LocalFetch:
    """A ``Fetch`` of this node."""

    def __init__(self, fleet: FleetNode, digest: Digest, size: int, shared: bool) -> None:
        self.digest = digest
        self.size = size
        self.have = 0
        self._fleet = fleet
        self._shared = shared
        self._claims = False
        self._told: int | None = None
        """Bytes of which the others were told."""
        self._expected = contextlib.ExitStack()
        self._path = ""
        self._part: Part | None = None

    async def claim(self, left: Collection[str] = ()) -> Claim:
        if not self._shared:
            return NOBODY
        self._claims = True
        # before etcd knows it: then the others ask for it
        self._expected.close()
        self._expected.enter_context(self._fleet.arriving.expected(self.digest))
        found = await self._fleet.claim(self.digest, left)
        if not found.ours:
            self._expected.close()
        return found

    def arrived(self, path: str, have: int, received: int = 0) -> None:
        """As ``Fetch`` says. InvalidArgument for a file that is none."""
        if not self._shared or not self._fleet.began(self):
            return
        if self._part is None or path != self._path or have < self.have:
            self._fleet.arriving.end(self.digest)
            self._part = self._fleet.arriving.begin(self.digest, path, self.size)
            self._path = path
        self.have = min(have, self.size)
        self._part.grown(have, received)
        told = self._told
        if told is None or have < told or have == self.size or have - told >= max(self.size // STEPS, 1):
            self._told = self.have
            self._fleet.moved(self)

    def end(self) -> None:
        """It is over, and so is its claim."""
        self._fleet.ended(self)
        if self._claims:
            self._fleet.release(self.digest)
        self._expected.close()


def _after(prefix: bytes, pair: KeyValue) -> str:
    return pair.key.removeprefix(prefix).decode(errors="replace")


def _peer(pair: KeyValue) -> Peer | None:
    value = told.read(pair)
    size, have = value.get("size"), value.get("have")
    if (
        type(size) is int
        and type(have) is int
        and isinstance(value.get("address"), str)
        and 0 <= have <= size < 1 << 63
    ):
        node = pair.key.rpartition(b"/")[2].decode(errors="replace")
        return Peer(node, told.text(value["address"]), size, have)
    return None
