"""The content store's files, and all system calls on them. All of it blocks: ``local`` calls it in threads.

::

    ROOT/content/
        blobs/ALGORITHM/HEX             a blob; its modification time is the time of its commit
        ingest/SHA256-OF-REF/           an ingest:
            ref  total                    as the client gave them (total only if it is known)
            startedat  updatedat          RFC 3339
            data                          the bytes so far, up to the first hole; its writer holds its flock
        labels/ALGORITHM/HEX            the labels, as JSON, of a blob that ever had any; its modification time is the
                                        time of the last change
        scratch/                        files that are not yet, or no longer, one of these; emptied at each start
        store-id                        the metadata store that the directory belongs to (``stamp``)

``blobs`` and ``ingest`` are laid out as in containerd's own store, so that either program can take over the other's
directory. Blobs, labels and the store id are durable once the call that made them returns: data fsynced, renamed,
directory fsynced. Ingests are not fsynced before their commit: after a power cut, an ingest may have fewer bytes or
wrong ones. It is hashed again when it is resumed, and at worst its commit fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from services.content import ingest_notes
from services.content.store import CHUNK, Info, Status
from services.kit import errors
from services.kit.faults import fault
from services.kit.files import replace, start_writeback, sync_directory
from services.kit.thread_times import step
from services.oci.digests import ALGORITHMS, CANONICAL, Digest

log = logging.getLogger(__name__)

_CANONICAL = re.compile(rf"{CANONICAL}:[0-9a-f]{{{ALGORITHMS[CANONICAL]}}}")
_HEX = len(f"{CANONICAL}:")
_EACH = 8 << 20
"""Bytes of an ingest after which their writing to the disk is started."""
_TURN = 32
"""Blobs that are removed before others get a turn."""
_DIGEST_OF_REF = re.compile(r"[0-9a-f]{64}")


class DirectorySync:
    """As :func:`sync_directory`, for several threads. An fsync covers everything that was renamed before it began, so
    the threads that call while one is running share the next.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._begun = self._done = 0
        """Numbers of the last fsync that began, and of the last that succeeded."""
        self._running = False

    def __call__(self, directory: str) -> None:
        with self._changed:
            wanted = self._begun + 1
            while self._running and self._done < wanted:
                self._changed.wait()
            if self._done >= wanted:
                return
            self._running = True
            self._begun += 1
            number = self._begun
        done = False
        try:
            sync_directory(directory)
            done = True
        finally:
            with self._changed:
                self._running = False
                if done:
                    self._done = number
                self._changed.notify_all()


def make_directory(directory: str) -> None:
    """Make ``directory``, if it does not exist, below an existing one, durably."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o755)
        sync_directory(os.path.dirname(directory))


def disk_error(error: OSError, what: str) -> errors.NodeError | OSError:
    """The error to answer if the disk is full, read-only or broken: it says what could not be done. Any other OSError
    is a defect and is returned unchanged.
    """
    return errors.of_machine(error, what) or error


class Disk:
    """The directory of a content store. The caller holds its lock (``kit.process.owned``)."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._scratches = itertools.count()
        self._publishing = threading.Lock()
        self._labelling = threading.Lock()
        self._syncs: defaultdict[str, DirectorySync] = defaultdict(DirectorySync)
        """By algorithm: the fsyncs of the directory of its blobs."""
        os.makedirs(self.root, exist_ok=True)
        for name in ("blobs", "ingest", "labels", "scratch"):
            make_directory(os.path.join(self.root, name))

    def _scratch(self) -> str:
        """A path that does not exist."""
        return os.path.join(self.root, "scratch", f"{os.getpid()}.{next(self._scratches)}")

    # ---------------------------------------------------------------- blobs

    def blob_path(self, digest: Digest) -> str:
        return os.path.join(self.root, "blobs", digest.algorithm, digest.hex)

    def has(self, digest: Digest) -> bool:
        return os.path.exists(self.blob_path(digest))

    def info(self, digest: Digest) -> Info:
        """Describe a blob; NotFound."""
        try:
            status = os.stat(self.blob_path(digest))
        except FileNotFoundError:
            raise errors.NotFound(f"content {digest}") from None
        labels, updated_at = self._labels(digest)
        return Info(digest, status.st_size, status.st_mtime_ns, max(status.st_mtime_ns, updated_at), labels)

    def digests(self) -> list[Digest]:
        """The digests of all blobs, in order."""
        found = []
        for algorithm in sorted(os.listdir(os.path.join(self.root, "blobs"))):
            if algorithm not in ALGORITHMS:
                continue
            for name in sorted(os.listdir(os.path.join(self.root, "blobs", algorithm))):
                try:
                    found.append(Digest.parse(f"{algorithm}:{name}"))
                except ValueError as error:
                    log.error("%s/blobs/%s/%s is no blob: %s", self.root, algorithm, name, error)
        return found

    def delete(self, digest: Digest) -> None:
        """Remove a blob; NotFound."""
        try:
            os.unlink(self.blob_path(digest))
        except FileNotFoundError:
            raise errors.NotFound(f"content {digest}") from None
        self.forget_labels(digest)

    def deletions(self) -> Deletions:
        """A context for many deletions, one after the other."""
        return Deletions(self)

    def update(self, digest: Digest, change: Callable[[Mapping[str, str]], Mapping[str, str]]) -> Info:
        """Replace a blob's labels by ``change`` of its labels; NotFound."""
        with self._labelling:
            labels = change(self.info(digest).labels)
            self._replace_labels(digest, labels)
            return self.info(digest)

    def publish(self, data: str, digest: Digest, labels: Mapping[str, str] | None, *, durably: bool = True) -> bool:
        """Make the file ``data``, whose bytes are durable, the blob ``digest``. Returns False if the blob existed.
        Durable either way, unless that is left to :meth:`sync_blobs`.

        An existing blob whose bytes do not match its digest is replaced.
        """
        target = self.blob_path(digest)
        make_directory(os.path.dirname(target))
        damaged = self._is_damaged(target, digest)
        with self._publishing:
            new = damaged or not os.path.exists(target)
            if new:
                with self._labelling:
                    if not damaged:
                        # None too: an earlier blob of this digest may have left labels
                        self._replace_labels(digest, labels or None)
                fault("content.before-rename")
                os.rename(data, target)
                fault("content.after-rename")
        if durably:
            self.sync_blobs(digest)
        return new

    def sync_blobs(self, digest: Digest) -> None:
        """All that was published under this algorithm is durable now."""
        self._syncs[digest.algorithm](os.path.dirname(self.blob_path(digest)))

    def _is_damaged(self, path: str, digest: Digest) -> bool:
        """Whether an existing blob does not match its digest. A commit of an existing blob is rare: most clients are
        told before they write.
        """
        try:
            with open(path, "rb", buffering=0) as file:
                found = hashlib.file_digest(file, digest.algorithm).hexdigest()
        except FileNotFoundError:
            return False
        except OSError as error:
            log.error("content %s cannot be read, and is replaced: %s", digest, error)
            return True
        if found != digest.hex:
            log.error("content %s does not match its digest, and is replaced", digest)
        return found != digest.hex

    # ---------------------------------------------------------------- labels

    def labels_path(self, digest: Digest) -> str:
        return os.path.join(self.root, "labels", digest.algorithm, digest.hex)

    def _labels(self, digest: Digest) -> tuple[dict[str, str], int]:
        """The labels and the time of their last change, 0 if there was none."""
        try:
            with open(self.labels_path(digest), "rb") as file:
                return dict(json.load(file)), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return {}, 0

    def forget_labels(self, digest: Digest) -> None:
        """Remove a blob's labels, if it has any."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.labels_path(digest))

    def _replace_labels(self, digest: Digest, labels: Mapping[str, str] | None) -> None:
        if labels is None:
            self.forget_labels(digest)
            return
        path = self.labels_path(digest)
        make_directory(os.path.dirname(path))
        replace(path, json.dumps(dict(labels), sort_keys=True), self._scratch())

    # ---------------------------------------------------------------- ingests

    def ingest_directory(self, ref: str) -> str:
        return os.path.join(self.root, "ingest", hashlib.sha256(ref.encode()).hexdigest())

    def status(self, ref: str) -> Status:
        """Describe an ingest; NotFound."""
        try:
            return ingest_notes.read_status(self.ingest_directory(ref))
        except (FileNotFoundError, ValueError):
            raise errors.NotFound(f"reference {ref}") from None

    def statuses(self) -> Iterator[Status]:
        """All ingests; those that begin or end meanwhile may be missing."""
        top = os.path.join(self.root, "ingest")
        for name in os.listdir(top):
            with contextlib.suppress(FileNotFoundError, ValueError):
                yield ingest_notes.read_status(os.path.join(top, name))

    def remove_ingest(self, ref: str) -> bool:
        """Remove an ingest with all its files; False if there was none."""
        return self._remove(self.ingest_directory(ref))

    def _remove(self, directory: str) -> bool:
        """Rename a directory away, then remove it: it can be made anew at once."""
        away = self._scratch()
        try:
            os.rename(directory, away)
        except FileNotFoundError:
            return False
        shutil.rmtree(away)
        return True

    def recover(self) -> None:
        """Remove what a crash left half made or half removed. Called before anything is served."""
        # emptied, not recreated: a full disk has no block for a directory
        for left in os.scandir(os.path.join(self.root, "scratch")):
            if left.is_dir(follow_symlinks=False):
                shutil.rmtree(left.path)
            else:
                os.unlink(left.path)
        for algorithm in os.listdir(os.path.join(self.root, "labels")):
            for name in os.listdir(os.path.join(self.root, "labels", algorithm)):
                if not os.path.exists(os.path.join(self.root, "blobs", algorithm, name)):
                    os.unlink(os.path.join(self.root, "labels", algorithm, name))
        top = os.path.join(self.root, "ingest")
        for name in os.listdir(top):
            directory = os.path.join(top, name)
            try:
                whole = self.ingest_directory(ingest_notes.read_status(directory).ref) == directory
            except (OSError, ValueError):
                whole = False
            if not whole and _DIGEST_OF_REF.fullmatch(name):
                log.info("removing ingest %s, which a crash left unusable", name)
                self._remove(directory)


class Deletions:
    """Deletes blobs as :meth:`Disk.delete` does, at less cost: each directory is looked up once, and labels are looked
    for only if there are any. A context manager.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._directories: dict[str, tuple[int, bool]] = {}
        """By algorithm: the descriptor of the directory of its blobs, and whether any blob has labels."""

    def __enter__(self) -> Deletions:
        return self

    def __exit__(self, *exc: object) -> None:
        for directory, _ in self._directories.values():
            os.close(directory)

    def delete(self, digest: Digest) -> None:
        """Remove a blob; NotFound."""
        try:
            directory, labelled = self._directories.get(digest.algorithm) or self._opened(digest)
            os.unlink(digest.hex, dir_fd=directory)
        except FileNotFoundError:
            raise errors.NotFound(f"content {digest}") from None
        if labelled:
            self._disk.forget_labels(digest)

    def delete_all(self, digests: Iterable[str], turn: Callable[[int], object] = int) -> Mapping[int, Exception]:
        """Remove blobs by their digests as they are written. Returns the errors, by the place of those that were not
        removed: a ``NodeError`` each, or a defect. ``turn`` is called before every :data:`_TURN` of them, with the
        number of those before.
        """
        failed: dict[int, Exception] = {}
        unlink, is_canonical = os.unlink, _CANONICAL.fullmatch
        canonical: int | None = None
        for number, text in enumerate(digests):
            if not number % _TURN:
                turn(number)
            try:
                if canonical is not None and is_canonical(text):  # a Digest and two calls would cost twice the unlink
                    unlink(text[_HEX:], dir_fd=canonical)
                    continue
                digest = Digest.parse(text)
                self.delete(digest)
                directory, labelled = self._directories[digest.algorithm]
                if digest.algorithm == CANONICAL and not labelled:
                    canonical = directory
            except ValueError as error:
                failed[number] = errors.InvalidArgument(str(error))
            except FileNotFoundError:
                failed[number] = errors.NotFound(f"content {text}")
            except OSError as error:
                failed[number] = disk_error(error, "content store")
            except Exception as error:  # the others are removed all the same, and the caller is told
                failed[number] = error
        return failed

    def _opened(self, digest: Digest) -> tuple[int, bool]:
        labels = os.path.dirname(self._disk.labels_path(digest))
        labelled = False
        with contextlib.suppress(FileNotFoundError), os.scandir(labels) as files:
            labelled = next(files, None) is not None
        directory = os.open(os.path.dirname(self._disk.blob_path(digest)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directories[digest.algorithm] = directory, labelled
        return directory, labelled


class Ingest:
    """An ingest whose file is open and locked. One thread uses it at a time, and calls :meth:`close` at the end.

    ``hashed`` is False if nobody needs the digest of the bytes that are already there, because another process fills
    the file. ``promised`` means that the opening named a total or a digest: bytes that do not match are then useless,
    and are removed. Without a promise only the commit was wrong, and the bytes are kept, as in containerd.
    """

    def __init__(
        self,
        disk: Disk,
        ref: str,
        total: int = 0,
        algorithm: str = CANONICAL,
        *,
        create: bool = True,
        hashed: bool = True,
        promised: bool = True,
        stop: threading.Event | None = None,
    ) -> None:
        """Begin or resume. NotFound unless ``create``; Unavailable while another process has the file locked. ``stop``
        ends a long resumption with Cancelled.
        """
        self._disk = disk
        self.ref = ref
        self.writing = self.hashing = 0
        """Nanoseconds that writes took, and that the digest of their bytes took."""
        self._promised = promised
        self._directory = disk.ingest_directory(ref)
        self._data = os.path.join(self._directory, "data")
        self._fd = self._open(create=create)
        try:
            status = self._resumable(total)
            if status is None:
                os.ftruncate(self._fd, 0)
                status = self._begin(total)
            elif total and not status.total:
                ingest_notes.write(self._directory, "total", str(total))
            self.offset = self._on_its_way = status.offset
            # bytes beyond a gap: the process that filled the file in several places has died
            if create and os.fstat(self._fd).st_size > status.offset:
                os.ftruncate(self._fd, status.offset)
            self.total = status.total or total
            self.started_at, self.updated_at = status.started_at, status.updated_at
            self._updated_before = self.updated_at
            self._hash = hashlib.new(algorithm)
            self._is_hashed = hashed
            if hashed:
                self._hash_file(self._hash, stop)
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self, *, create: bool) -> int:
        """Open and lock the data file; begin again if the ingest is removed meanwhile."""
        while True:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._directory, 0o755)
            try:
                self._found = os.path.exists(self._data)
                fd = os.open(self._data, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
            except FileNotFoundError:
                if not create:
                    raise errors.NotFound(f'ingest ref "{self.ref}"') from None
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise errors.Unavailable(f"ref {self.ref} locked by the process that fills its file") from None
            if self._is_linked(fd):
                return fd
            os.close(fd)

    def _is_linked(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._data), os.fstat(fd))
        except FileNotFoundError:
            return False

    def _resumable(self, total: int) -> Status | None:
        """The status of the existing ingest, or None if it cannot be resumed. Like containerd, begin anew if it cannot
        be read or has another total.
        """
        if not self._found:
            return None
        try:
            status = ingest_notes.read_status(self._directory)
        except (FileNotFoundError, ValueError) as error:
            log.warning("ingest %s begins anew: %s", self.ref, error)
            return None
        if status.ref != self.ref or (total and status.total and total != status.total):
            log.warning(
                "ingest %s begins anew: it has ref %s and total %d, not %d", self.ref, status.ref, status.total, total
            )
            return None
        return status

    def _begin(self, total: int) -> Status:
        now = time.time_ns()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, "total"))
        if total:
            ingest_notes.write(self._directory, "total", str(total))
        ingest_notes.write(self._directory, "startedat", ingest_notes.format_time(now))
        ingest_notes.write(self._directory, "updatedat", ingest_notes.format_time(now))
        ingest_notes.write(self._directory, "ref", self.ref)
        return Status(self.ref, 0, total, now, now)

    def _hash_file(self, digester: hashlib._Hash, stop: threading.Event | None = None) -> None:
        buffer = memoryview(bytearray(CHUNK))
        at = 0
        while at < self.offset and (n := os.preadv(self._fd, [buffer], at)):
            if stop is not None and stop.is_set():
                raise errors.Cancelled(f"resuming ref {self.ref}")
            digester.update(buffer[:n])
            at += n

    @property
    def path(self) -> str:
        """The path of the data file."""
        return self._data

    @property
    def closed(self) -> bool:
        """Whether the ingest was committed or closed."""
        return self._fd < 0

    @property
    def digest(self) -> str:
        """The digest of the bytes so far."""
        return f"{self._hash.name}:{self._hash.hexdigest()}"

    def status(self) -> Status:
        return Status(self.ref, self.offset, self.total, self.started_at, self.updated_at)

    def write(self, data: bytes | memoryview) -> None:
        """Append and hash. After a failure the ingest is as it was before."""
        rest = memoryview(data)
        begun = time.perf_counter_ns()
        try:
            at = self.offset
            while rest:
                n = os.pwrite(self._fd, rest, at)
                at += n
                rest = rest[n:]
        except OSError as error:
            os.ftruncate(self._fd, self.offset)
            raise disk_error(error, f"write ref {self.ref}") from error
        written = time.perf_counter_ns()
        self._hash.update(data)
        self.writing += written - begun
        self.hashing += time.perf_counter_ns() - written
        self.offset = at
        self.updated_at = time.time_ns()
        if at - self._on_its_way >= _EACH:  # the commit's fsync waits for the rest only
            start_writeback(self._fd, self._on_its_way, at - self._on_its_way)
            self._on_its_way = at

    def truncate(self) -> None:
        """Go back to offset 0."""
        os.ftruncate(self._fd, 0)
        self.offset = self._on_its_way = 0
        self._hash = hashlib.new(self._hash.name)
        self.updated_at = time.time_ns()

    def commit(
        self, size: int, expected: Digest | None, labels: Mapping[str, str] | None, *, computed: bool = False
    ) -> tuple[Digest, int]:
        """Check, publish, and close in any case: see ``store.Writer.commit``. If ``computed``, the digest is believed
        if ``size`` matches.
        """
        try:
            done = self.checked(size, expected, computed=computed)
            self.synced()
            self.published(done[0], labels)
            return done
        except OSError as error:
            raise disk_error(error, f"commit ref {self.ref}") from error
        finally:
            self.close_file()

    def checked(self, size: int, expected: Digest | None, *, computed: bool) -> tuple[Digest, int]:
        """The first part of a commit: digest and size, if they are as they should be."""
        actual = os.fstat(self._fd).st_size
        self.offset = actual
        if size and size != actual:
            self._failed()
            raise errors.FailedPrecondition(f"unexpected commit size {actual}, expected {size}")
        digest = (
            expected
            if computed and expected and size
            else self._digest(expected.algorithm if expected else self._hash.name)
        )
        if expected and digest != expected:
            self._failed()
            raise errors.FailedPrecondition(f"unexpected commit digest {digest}, expected {expected}")
        os.utime(self._fd)
        return digest, actual

    def begin_to_sync(self) -> None:
        """Start the writing of what :meth:`synced` will wait for."""
        start_writeback(self._fd)

    def synced(self) -> None:
        """The second part: the bytes are durable."""
        fault("content.before-fsync")
        with step("content.fsync"):
            os.fsync(self._fd)

    def published(self, digest: Digest, labels: Mapping[str, str] | None, *, durably: bool = True) -> None:
        """The last part: it is a blob, and no ingest any more. Unless ``durably``, the caller syncs the directory
        before it tells anybody.
        """
        if not self._is_linked(self._fd):
            raise errors.Aborted(f'ingest ref "{self.ref}"')
        try:
            with step("content.publish"):
                new = self._disk.publish(self._data, digest, labels, durably=durably)
        except FileNotFoundError:
            raise errors.Aborted(f'ingest ref "{self.ref}"') from None
        if new:
            os.fchmod(self._fd, 0o444)
        self._disk.remove_ingest(self.ref)
        if not new:
            raise errors.AlreadyExists(f"content {digest}")

    def _failed(self) -> None:
        """The bytes are not what the commit says. After a promise the ingest is removed; otherwise it stays to be
        resumed.
        """
        if self._promised:
            self._disk.remove_ingest(self.ref)
        else:
            ingest_notes.replace(self._directory, "updatedat", ingest_notes.format_time(self.updated_at))

    def _digest(self, algorithm: str) -> Digest:
        """The digest of the whole file. It is computed again only for another algorithm, or if another process filled
        the file.
        """
        digester = self._hash
        if not self._is_hashed or algorithm != digester.name:
            self._hash = digester = hashlib.new(algorithm)
            with step("content.hash"):
                self._hash_file(digester)
        return Digest(algorithm, digester.hexdigest())

    def close(self) -> None:
        """Leave the ingest to be resumed. May be called again, and after a commit."""
        if self._fd >= 0:
            if self.updated_at != self._updated_before and self._is_linked(self._fd):
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    ingest_notes.replace(self._directory, "updatedat", ingest_notes.format_time(self.updated_at))
            self.close_file()

    def close_file(self) -> None:
        """No more is done with it here."""
        fd, self._fd = self._fd, -1
        os.close(fd)
