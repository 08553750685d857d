"""Which service has the task of which container, where that is a candidate: tasks has no records in metadata.

    ROOT/gateway/containers.json    the containers whose tasks candidates have

A container's task is new with its Create: then a backend is chosen, and noted durably before the call. All other calls
about the container go there, until a Delete of the task succeeds. Containers that are not noted are home's. A List, and
Metrics, ask everybody, and are answered by all of them or not at all: a task that is missing from a list looks dead.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from api.containerd.services.tasks.v1 import tasks_pb2, tasks_stubs
from gateway.hop import Hop
from gateway.store import Fate, Object, Objects
from gateway.upstream import Upstream
from services.kit import errors, files
from services.kit.rpc import Answers, Call, Elsewhere, method_path, shielded

log = logging.getLogger(__name__)

_MOST = 64 << 20
"""Bytes of the file, at most."""
_CREATE, _DELETE, _LIST, _METRICS = (
    method_path(tasks_stubs.TASKS.methods_by_name[name]) for name in ("Create", "Delete", "List", "Metrics")
)


class Containers:
    """The containers of ``tasks`` candidates, noted below ``root``. ``timeout``: seconds that a call may take."""

    def __init__(self, tasks: Hop, root: Path, *, timeout: float) -> None:
        self._tasks = tasks
        self._timeout = timeout
        self._path = root / "gateway" / "containers.json"
        self._lock = asyncio.Lock()
        self._backends = _read(self._path)

    async def admit(self, request: bytes, call: Call) -> Answers | Elsewhere:
        """Where a call of tasks goes, by its request; or its answer. For :attr:`services.kit.rpc.Route.admit`."""
        if call.method in (_LIST, _METRICS):
            return [await self._all(request, call)]
        try:
            # of all these requests it is the first field; the others are none of this message
            container = tasks_pb2.GetRequest.FromString(request).container_id
        except DecodeError:
            raise errors.InvalidArgument(f"the request of {call.method}") from None
        key = call.optional_namespace, container
        if call.method == _CREATE and key not in self._backends:
            backend = self._tasks.new(call.optional_namespace)
            return await self._created(key, backend, request, call)
        upstream = self._tasks.having(self._backends.get(key, ""), call.optional_namespace)
        if call.method == _DELETE and key in self._backends:
            return [await shielded(self._deleted(key, upstream, request, call))]
        return Elsewhere(upstream)

    async def _created(self, key: tuple[str, str], backend: str, request: bytes, call: Call) -> Answers | Elsewhere:
        upstream = self._tasks.having(backend, call.optional_namespace)
        if backend == self._tasks.name:
            return Elsewhere(upstream)
        await self._note(key, backend)
        return [await shielded(self._create(key, upstream, request, call))]

    async def _create(self, key: tuple[str, str], upstream: Upstream, request: bytes, call: Call) -> bytes:
        try:
            return await self._asked(upstream, request, call)
        except errors.NodeError as error:
            done = isinstance(error, errors.AlreadyExists) or Fate.after(error, there=upstream.up) is Fate.UNKNOWN
            if not done:
                await self._note(key, "")
            raise

    async def _deleted(self, key: tuple[str, str], upstream: Upstream, request: bytes, call: Call) -> bytes:
        try:
            answer = await self._asked(upstream, request, call)
        except errors.NotFound:
            await self._note(key, "")
            raise
        await self._note(key, "")
        return answer

    async def _all(self, request: bytes, call: Call) -> bytes:
        """The answers of everybody as one: of repeated fields, messages put together are the message of all."""
        backends = [self._tasks.name, *(each.terms.backend for each in self._tasks.candidates)]
        upstreams = [self._tasks.having(backend, call.optional_namespace) for backend in backends]
        return b"".join(await asyncio.gather(*(self._asked(upstream, request, call) for upstream in upstreams)))

    async def _asked(self, upstream: Upstream, request: bytes, call: Call) -> bytes:
        channel = await upstream.ready(call)
        answer: bytes = await channel.unary(call.method, request, call.passed_on(), self._timeout)
        return answer

    # -- for operators

    def objects(self, backend: str, limit: int = 0) -> Objects:
        """The containers whose tasks a backend has."""
        found = [key for key, each in self._backends.items() if each == backend]
        some: Sequence[Object] = [Object(namespace, "task", name) for namespace, name in found[:limit]]
        return Objects(tasks=len(found), some=some)

    async def forget(self, backend: str) -> Objects:
        """Drop the notes of a backend: calls about its containers go home."""
        dropped = self.objects(backend)
        async with self._lock:
            left = {key: each for key, each in self._backends.items() if each != backend}
            await asyncio.to_thread(_write, self._path, left)
            self._backends = left
        return dropped

    async def _note(self, key: tuple[str, str], backend: str) -> None:
        async with self._lock:
            left = {**self._backends, key: backend}
            if not backend:
                del left[key]
            await asyncio.to_thread(_write, self._path, left)
            self._backends = left


def _read(path: Path) -> dict[tuple[str, str], str]:
    """The notes. A file that cannot be read is put aside, and logged as an error."""
    try:
        if path.stat().st_size > _MOST:
            raise ValueError(f"it has more than {_MOST} bytes")
        return {(str(namespace), str(name)): str(backend) for namespace, name, backend in json.loads(path.read_bytes())}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        aside = path.with_name(f"{path.name}.damaged")
        log.error("%s does not say which tasks candidates have (it is now %s): %s", path, aside, error)
        try:
            path.replace(aside)
        except OSError as failure:
            log.error("%s: %s", aside, failure.strerror)
        return {}


def _write(path: Path, backends: dict[tuple[str, str], str]) -> None:
    files.replace(path, json.dumps([[*key, backend] for key, backend in backends.items()]))
