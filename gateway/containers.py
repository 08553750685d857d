"""Which service has the task of which container, where that is a candidate: tasks has no records in metadata.

    ROOT/gateway/containers.json    the containers whose tasks candidates have

A container's task is new with its Create: then a backend is chosen, and noted durably before the call. A candidate
makes none where home has one. All other calls about the container go there, until a Delete of the task succeeds.
Containers that are not noted are home's. A List, and Metrics, ask everybody, and are answered by all of them or not at
all: a task that is missing from a list looks dead.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from google.protobuf.message import DecodeError

from api.containerd.services.tasks.v1 import tasks_pb2, tasks_stubs
from gateway.hop import Hop
from gateway.notes import Notes
from gateway.store import Fate
from gateway.upstream import Upstream, onward
from services.kit import errors
from services.kit.rpc import Answers, Call, Elsewhere, method_path, shielded

_CREATE, _DELETE, _LIST, _METRICS = (
    method_path(tasks_stubs.TASKS.methods_by_name[name]) for name in ("Create", "Delete", "List", "Metrics")
)

_ASKING = 2.0
"""Seconds that home has to say whether it has a task."""


class Containers:
    """The containers of ``tasks`` candidates, noted below ``root``. ``timeout``: seconds that a call may take."""

    def __init__(self, tasks: Hop, root: Path, *, timeout: float) -> None:
        self._tasks = tasks
        self._timeout = timeout
        self.notes = Notes(root / "gateway" / "containers.json", "task")

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
        if call.method == _CREATE and key not in self.notes:
            backend = self._tasks.new(call.optional_namespace)
            if backend != self._tasks.name and await self._is_home(container, call):
                backend = self._tasks.name
            return await self._created(key, backend, request, call)
        upstream = self._tasks.having(self.notes.backend(key), call.optional_namespace)
        if call.method == _DELETE and key in self.notes:
            return [await shielded(self._deleted(key, upstream, request, call))]
        return Elsewhere(upstream)

    async def _is_home(self, container: str, call: Call) -> bool:
        """Whether home has a task of the container, so that a candidate must not make another."""
        home = self._tasks.home
        if not home.is_ready():
            return False
        try:
            await home.channel.client(tasks_stubs.TASKS).Get(
                tasks_pb2.GetRequest(container_id=container), headers=onward(call, self._tasks.name), timeout=_ASKING
            )
        except errors.NodeError:
            return False
        return True

    async def _created(self, key: tuple[str, str], backend: str, request: bytes, call: Call) -> Answers | Elsewhere:
        upstream = self._tasks.having(backend, call.optional_namespace)
        if backend == self._tasks.name:
            return Elsewhere(upstream)
        await self.notes.note(key, backend)
        return [await shielded(self._create(key, upstream, request, call))]

    async def _create(self, key: tuple[str, str], upstream: Upstream, request: bytes, call: Call) -> bytes:
        try:
            return await self._asked(upstream, request, call)
        except errors.NodeError as error:
            done = isinstance(error, errors.AlreadyExists) or Fate.after(error, there=upstream.up) is Fate.UNKNOWN
            if not done:
                await self.notes.note(key, "")
            raise

    async def _deleted(self, key: tuple[str, str], upstream: Upstream, request: bytes, call: Call) -> bytes:
        try:
            answer = await self._asked(upstream, request, call)
        except errors.NotFound:
            await self.notes.note(key, "")
            raise
        await self.notes.note(key, "")
        return answer

    async def _all(self, request: bytes, call: Call) -> bytes:
        """The answers of everybody as one: of repeated fields, messages put together are the message of all."""
        backends = [self._tasks.name, *(each.terms.backend for each in self._tasks.candidates)]
        upstreams = [self._tasks.having(backend, call.optional_namespace) for backend in backends]
        return b"".join(await asyncio.gather(*(self._asked(upstream, request, call) for upstream in upstreams)))

    async def _asked(self, upstream: Upstream, request: bytes, call: Call) -> bytes:
        channel = await upstream.ready(call)
        answer: bytes = await channel.unary(call.method, request, onward(call, self._tasks.name), self._timeout)
        return answer
