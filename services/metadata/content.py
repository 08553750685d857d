"""Records of content: the blobs and ingests of each namespace. The bytes are in the backend."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from services.kit import errors, filters
from services.kit.identifiers import quoted
from services.kit.slices import Steps, at_once
from services.metadata import schema
from services.metadata.database import Database, check_lease, check_not_sweeping, ensure_namespace, hold, release
from services.metadata.intents import Intents, check_no_blob_sweeping, check_unclaimed, connected, open_intent
from services.metadata.store import (
    LABELS_PER_STEP,
    Blob,
    Event,
    Finished,
    Gateway,
    Ingest,
    Intent,
    Labels,
    Outcome,
    Raw,
    Resource,
    masked_in_steps,
    present,
    validate_labels,
)
from services.metadata.transactions import Reader, Transaction
from services.oci.digests import digest_problem

T = TypeVar("T")

_EXPIRES = 24 * 3600 * 10**9
FEW, _ATTEMPTS = 1000, 3
"""The number of labels above which an update is made in steps; how often that is attempted."""
_SHAREABLE = "containerd.io/namespace.shareable"
"""Label of a namespace whose content all other namespaces may share, whatever the policy."""


class Content:
    """Blobs and ingests. ``shared`` is containerd's content_sharing_policy "shared": a blob that one namespace has
    needs no bytes in another.
    """

    def __init__(self, database: Database, *, shared: bool = True) -> None:
        self._database = database
        self._shared = shared

    # -- blobs

    async def info(self, namespace: str, digest: str) -> Blob:
        """Describe a blob: NotFound; InvalidArgument for a malformed digest. A record with thousands of labels is read
        in steps.
        """
        if digest_problem(digest):
            raise errors.InvalidArgument.verbatim(f"{quoted(digest)} failed validation")
        value = self._raw(namespace, digest)
        with self._database.reporting_damage():
            if len(value) <= schema.LARGE:
                return schema.BLOBS.decode((namespace, digest), value)
            return await self._database.lane.through(schema.read_blob_in_steps((namespace, digest), value))

    def _raw(self, namespace: str, digest: str) -> bytes:
        """The encoded record; NotFound."""
        value = self._database.view(lambda tx: schema.BLOBS.raw(tx, namespace, digest))
        if value is None:
            raise errors.NotFound(f"content digest {digest}")
        return value

    def resolve(self, namespace: str, digest: str) -> Blob:
        """As ``info``, for a caller that reads the bytes."""
        if problem := digest_problem(digest):
            raise errors.InvalidArgument.verbatim(f"{digest}: {problem}")
        return self._database.view(lambda tx: _blob(tx, namespace, digest))

    def select(self, namespace: str, sources: Sequence[str], make: Callable[[Blob], T]) -> AsyncIterator[list[T]]:
        """The result of ``make`` for each blob that the filters match, in order of digests and in pieces, as in
        ``Database.select``.
        """
        return self._database.select(
            schema.BLOBS, namespace, sources=sources, field=_field, make=lambda _, blob: make(blob)
        )

    async def update(self, namespace: str, digest: str, labels: Labels, paths: Sequence[str]) -> Blob:
        """Change the labels that ``paths`` name, or replace all if there are no paths. NotFound, InvalidArgument."""
        if digest_problem(digest):
            raise errors.InvalidArgument.verbatim(f"{quoted(digest)} failed validation")

        if len(paths) > FEW or len(labels) > FEW:
            for _ in range(_ATTEMPTS):
                if (done := await self._update_many(namespace, digest, labels, paths)) is not None:
                    return done

        return await self._database.write(self.updating(namespace, digest, labels, paths))

    def updating(
        self, namespace: str, digest: str, labels: Labels, paths: Sequence[str]
    ) -> Callable[[Transaction], Blob]:
        """The work of :meth:`update`, of few labels."""

        def work(tx: Transaction) -> Blob:
            blob = _updated(_blob(tx, namespace, digest), labels, paths)
            schema.put_blob(tx, namespace, blob)
            return blob

        return work

    async def _update_many(self, namespace: str, digest: str, labels: Labels, paths: Sequence[str]) -> Blob | None:
        """As ``update``, in steps, for many labels, as those of a manifest of thousands of layers. None if the record
        was changed meanwhile.
        """
        lane = self._database.lane
        before = self._raw(namespace, digest)
        await lane.turn()  # the request was parsed in this turn
        with self._database.reporting_damage():
            old = await lane.through(schema.read_blob_in_steps((namespace, digest), before))
        blob = await lane.through(_updated_in_steps(old, labels, paths))
        after = await lane.through(schema.encode_blob_in_steps(blob))

        def work(tx: Transaction) -> Blob | None:
            if schema.BLOBS.raw(tx, namespace, digest) != before:
                return None
            schema.put_blob(tx, namespace, blob, encoded=after)
            return blob

        return await self._database.write(work)

    async def delete(self, namespace: str, lease: str, digest: str) -> Finished:
        """Remove the record; the collector removes the bytes. NotFound, InvalidArgument."""
        if problem := digest_problem(digest):
            raise errors.InvalidArgument.verbatim(problem)

        def work(tx: Transaction) -> None:
            _blob(tx, namespace, digest)
            schema.delete_blob(tx, namespace, digest)
            release(tx, namespace, lease, Resource("content", digest))

        await self._database.write(work, "deletion")
        return Finished(events=(Event(namespace, "/content/delete", {"digest": digest}),))

    # -- ingests

    async def open(
        self, namespace: str, lease: str, incarnation: str, ref: str, total: int, expected: str, backend: str = ""
    ) -> Ingest:
        """Open a writer for ``ref``. AlreadyExists, with the blob leased, if the namespace has the blob. ``backend`` is
        for an ingest that is new: one whose bytes may be in a backend already stays there.
        """
        work = self.opening(namespace, lease, incarnation, ref, total, expected, backend)
        # Not lasting by itself: after a power cut the raw ingest belongs to nobody, and the next one begins anew. But
        # that a lease holds an existing blob is lasting.
        if not self.exists(namespace, expected):
            opened = await self._database.write(work, lasting=False)
            if opened is not None:
                return opened
        opened = await self._database.write(work)
        if opened is None:
            raise errors.AlreadyExists(f"content {expected}")
        return opened

    def exists(self, namespace: str, digest: str) -> bool:
        """Whether the namespace has a blob; False for an empty digest."""
        return bool(digest) and self._database.view(lambda tx: schema.BLOBS.has(tx, namespace, digest))

    def opening(
        self, namespace: str, lease: str, incarnation: str, ref: str, total: int, expected: str, backend: str = ""
    ) -> Callable[[Transaction], Ingest | None]:
        """The work of :meth:`open`; it returns None if the namespace has the blob."""
        if not ref:
            raise errors.InvalidArgument("ref must not be empty")

        def work(tx: Transaction) -> Ingest | None:
            gateway = connected(tx, incarnation)
            if expected and schema.BLOBS.has(tx, namespace, expected):
                hold(tx, namespace, lease, Resource("content", expected))
                return None
            check_lease(tx, namespace, lease)
            ensure_namespace(tx, namespace)
            blob = self._shareable(tx, gateway, expected, total) if expected else None
            now = time.time_ns()
            old = schema.INGESTS.get(tx, namespace, ref)
            home = gateway.chosen(gateway.content, backend)
            ingest = Ingest(
                ref=ref,
                raw_ref=old.raw_ref if old else schema.raw_name(tx, namespace, ref),
                backend=blob.backend if blob else old.backend if old and not old.shared else home,
                expected=expected if blob else "",
                shared=blob is not None,
                size=blob.size if blob else total,
                started=old.started if old else now,
                expires=(old.expires if old else 0) if lease else now + _EXPIRES,
            )
            if not ingest.shared:
                check_not_sweeping(tx, Raw(ingest.backend, "ingest", ingest.raw_ref))
            schema.put_ingest(tx, namespace, ingest)
            hold(tx, namespace, lease, Resource("ingests", ref))
            return ingest

        return work

    def _shareable(self, tx: Reader, gateway: Gateway, digest: str, total: int) -> Blob | None:
        """Another namespace's record of ``digest`` that this namespace may share, if there is one."""
        for owner in schema.owners(tx, digest):
            blob = schema.BLOBS.get(tx, owner, digest)
            if blob is not None and total not in (0, blob.size):
                return None  # a blob has the same size everywhere
            if blob is None or blob.backend not in (gateway.content, *gateway.candidates):
                continue
            space = schema.NAMESPACES.get(tx, owner)
            if self._shared or (space is not None and space.labels.get(_SHAREABLE) == "true"):
                return blob
        return None

    def ingest(self, namespace: str, ref: str) -> Ingest:
        """The record of an ingest; NotFound."""
        return self._database.view(lambda tx: _ingest(tx, namespace, ref))

    def ingests(self, namespace: str, make: Callable[[Ingest], T]) -> AsyncIterator[list[T]]:
        """The result of ``make`` for each ingest of a namespace, in order of refs and in pieces."""
        return self._database.select(schema.INGESTS, namespace, make=lambda _, ingest: make(ingest))

    async def forget(self, namespace: str, lease: str, ref: str) -> Ingest:
        """Remove the record of an ingest that is aborted. NotFound."""

        def work(tx: Transaction) -> Ingest:
            ingest = _ingest(tx, namespace, ref)
            schema.INGESTS.delete(tx, namespace, ref)
            release(tx, namespace, lease, Resource("ingests", ref))
            return ingest

        return await self._database.write(work, "deletion")

    # -- commit

    async def begin_commit(
        self,
        intents: Intents,
        namespace: str,
        lease: str,
        incarnation: str,
        ref: str,
        size: int,
        expected: str,
        labels: Mapping[str, str],
    ) -> tuple[Intent, Finished | None]:
        """Open the intent of a commit. If the bytes are already there (a shared ingest), the answer has the result too.

        AlreadyExists if the namespace has the blob meanwhile; the blob is then leased and the ingest removed.
        """
        result = await intents.begin(self.beginning_commit(namespace, lease, incarnation, ref, size, expected, labels))
        if isinstance(result, errors.NodeError):
            raise result
        return (result, None) if isinstance(result, Intent) else result

    def beginning_commit(
        self,
        namespace: str,
        lease: str,
        incarnation: str,
        ref: str,
        size: int,
        expected: str,
        labels: Mapping[str, str],
    ) -> Callable[[Transaction], Intent | tuple[Intent, Finished] | errors.NodeError]:
        """The work of :meth:`begin_commit`."""
        validate_labels(labels, "info.Labels")

        def work(tx: Transaction) -> Intent | tuple[Intent, Finished] | errors.NodeError:
            connected(tx, incarnation)
            check_lease(tx, namespace, lease)
            if expected and schema.BLOBS.has(tx, namespace, expected):
                old = schema.INGESTS.get(tx, namespace, ref)
                _committed(tx, namespace, lease, ref, old.raw_ref if old else "", expected)
                return errors.AlreadyExists(f"content {expected}")
            ingest = _ingest(tx, namespace, ref)
            intent = Intent(
                id="",
                incarnation=incarnation,
                operation="commit-ingest",
                namespace=namespace,
                lease=lease,
                backend=ingest.backend,
                labels=present(labels),
                ref=ref,
                raw_ref=ingest.raw_ref,
                expected=expected,
                size=size,
            )
            if ingest.shared:
                if size not in (0, ingest.size):
                    raise errors.FailedPrecondition(f"{quoted(ref)} failed size validation: {ingest.size} != {size}")
                if expected not in ("", ingest.expected):
                    raise errors.FailedPrecondition(f"{quoted(ref)} unexpected digest")
                ended = finish_commit(tx, intent, Outcome(digest=ingest.expected, size=ingest.size))
                return ended if isinstance(ended, errors.NodeError) else (intent, ended)
            check_no_blob_sweeping(tx, ingest.backend, expected)
            check_unclaimed(
                tx, self._database.started, f"the commit of {expected or ref}", namespace, "", ref, expected
            )
            return open_intent(tx, intent)

        return work


def finish_commit(tx: Transaction, intent: Intent, outcome: Outcome) -> Finished | errors.NodeError:
    """Record the committed blob in the intent's namespace."""
    digest = outcome.digest
    if intent.lease and not schema.LEASES.has(tx, intent.namespace, intent.lease):
        return errors.NotFound("lease does not exist")
    check_not_sweeping(tx, Raw(intent.backend, "blob", digest))
    exists = schema.BLOBS.has(tx, intent.namespace, digest)
    if not exists:
        now = time.time_ns()
        schema.put_blob(
            tx,
            intent.namespace,
            Blob(
                digest=digest, size=outcome.size, backend=intent.backend, labels=intent.labels, created=now, updated=now
            ),
        )
    _committed(tx, intent.namespace, intent.lease, intent.ref, intent.raw_ref, digest)
    if exists:
        return errors.AlreadyExists(f"content {digest}")
    event = Event(intent.namespace, "/content/create", {"digest": digest, "size": outcome.size})
    return Finished(events=(event,), digest=digest, size=outcome.size)


def _committed(tx: Transaction, namespace: str, lease: str, ref: str, raw_ref: str, digest: str) -> None:
    """Remove the ingest, and let its lease hold the blob."""
    ingest = schema.INGESTS.get(tx, namespace, ref)
    if ingest is not None and ingest.raw_ref == raw_ref:
        schema.INGESTS.delete(tx, namespace, ref)
    release(tx, namespace, lease, Resource("ingests", ref))
    hold(tx, namespace, lease, Resource("content", digest))


def _updated(old: Blob, labels: Labels, paths: Sequence[str]) -> Blob:
    """``old`` with the labels that ``paths`` name changed, or all replaced if there are no paths. InvalidArgument."""
    return at_once(_updated_in_steps(old, labels, paths))


def _updated_in_steps(old: Blob, labels: Labels, paths: Sequence[str]) -> Steps[Blob]:
    """As :func:`_updated`, in steps."""
    new, rest = yield from masked_in_steps(old.labels, labels, paths or ("labels",))
    if rest:
        raise errors.InvalidArgument(f"cannot update {quoted(rest[0])} field on content info {quoted(old.digest)}")
    kept: dict[str, str] = {}
    left = iter(new.items())
    while some := dict(islice(left, LABELS_PER_STEP)):
        validate_labels(some, "info.Labels")
        kept.update(present(some))
        yield
    return replace(old, labels=kept, updated=time.time_ns())


def _blob(tx: Reader, namespace: str, digest: str) -> Blob:
    found = schema.BLOBS.get(tx, namespace, digest)
    if found is None:
        raise errors.NotFound(f"content digest {digest}")
    return found


def _ingest(tx: Reader, namespace: str, ref: str) -> Ingest:
    found = schema.INGESTS.get(tx, namespace, ref)
    if found is None:
        raise errors.NotFound(f"reference {ref}")
    return found


def _field(blob: Blob, path: Sequence[str]) -> tuple[str, bool]:
    """The fields that filters can select blobs by."""
    match path:
        case ["digest", *_]:
            return blob.digest, True
        case ["labels", *rest]:
            return filters.of_map(rest, blob.labels)
    return "", False
