"""containerd.services.sandbox.v1.Controller: sandboxes are made and ended by services of others, the proxy plugins of
type sandbox. A request names one of them (``sandboxer``), and the gateway passes the call on.

What runs of a sandbox only its controller knows; its record is metadata's (Store), and clients write it themselves. The
gateway publishes the events, as containerd does: a controller does not.

    ROOT/gateway/sandboxes.json    the sandboxes that candidates have

A sandbox is new with its Create: then a backend is chosen, and noted durably before the call, if it is a candidate. All
other calls about the sandbox go there, until a Shutdown has succeeded. Sandboxes that are not noted are home's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from api.containerd.events import sandbox_pb2 as events
from api.containerd.services.sandbox.v1 import sandbox_pb2 as pb
from api.containerd.services.sandbox.v1 import sandbox_stubs
from api.containerd.types.sandbox_pb2 import Sandbox
from gateway.events import Exchange
from gateway.hop import Hop
from gateway.notes import Key, Notes
from gateway.routes import Routes
from gateway.store import Fate
from gateway.upstream import raw_headers
from services.kit import any as kit_any
from services.kit import errors, identifiers
from services.kit.rpc import Call, shielded

M = TypeVar("M", bound=Message)

_ASKING = 2.0
"""Seconds that home has to say whether it has a sandbox."""
_READ = 1
"""Times that an interrupted call which changes nothing is made again."""


class SandboxControllerServicer:
    """Passes calls on by ``routes``, publishes events to ``exchange``, and notes below ``root``. ``timeout``: seconds
    that a call may take, but for Wait.
    """

    SERVICE = sandbox_stubs.CONTROLLER

    def __init__(self, routes: Routes, exchange: Exchange, root: Path, *, timeout: float) -> None:
        self._routes = routes
        self._exchange = exchange
        self._timeout = timeout
        self.notes = Notes(root / "gateway" / "sandboxes.json", "sandbox")

    async def Create(self, request: pb.ControllerCreateRequest, call: Call) -> pb.ControllerCreateResponse:
        """A sandbox's record says which one it is; a request without a record is given one with its id only."""
        hop = self._routes.sandboxer(request.sandboxer)
        id_ = request.sandbox.sandbox_id if request.HasField("sandbox") else request.sandbox_id
        identifiers.validate(id_)
        if not request.HasField("sandbox"):
            request.sandbox.CopyFrom(Sandbox(sandbox_id=id_))
        request.sandbox.runtime.SetInParent()  # controllers in Go read it without looking whether it is there
        request.sandbox_id = id_
        key = (call.namespace, hop.name, id_)
        return await shielded(self._create(hop, key, request, call))

    async def _create(
        self, hop: Hop, key: Key, request: pb.ControllerCreateRequest, call: Call
    ) -> pb.ControllerCreateResponse:
        if key not in self.notes:
            backend = hop.new(call.namespace)
            if backend != hop.name and not await self._is_home(hop, request, call):
                await self.notes.note(key, backend)
        try:
            await self._passed(hop, key, request, pb.ControllerCreateResponse, call)
        except errors.NodeError as error:
            there = hop.having(self.notes.backend(key), call.namespace).up
            if not isinstance(error, errors.AlreadyExists) and Fate.after(error, there=there) is Fate.NOT_DONE:
                await self.notes.note(key, "")
            raise
        self._publish(call, "create", events.SandboxCreate(sandbox_id=request.sandbox_id))
        return pb.ControllerCreateResponse(sandbox_id=request.sandbox_id)

    async def _is_home(self, hop: Hop, request: pb.ControllerCreateRequest, call: Call) -> bool:
        """Whether home has the sandbox, so that a candidate must not make another of its name."""
        wanted = pb.ControllerStatusRequest(sandbox_id=request.sandbox_id, sandboxer=request.sandboxer)
        home = hop.home
        if not home.is_ready():
            return False
        try:
            found = await home.channel.client(sandbox_stubs.CONTROLLER).Status(
                wanted, headers=raw_headers(call, hop.name), timeout=_ASKING
            )
        except errors.NodeError:
            return False
        return bool(found.state or found.pid)  # some answer nothing but the id for one that they do not know

    async def Start(self, request: pb.ControllerStartRequest, call: Call) -> pb.ControllerStartResponse:
        hop, key = self._about(request.sandboxer, request.sandbox_id, call.namespace)
        answer = await self._passed(hop, key, request, pb.ControllerStartResponse, call)
        answer.sandbox_id = request.sandbox_id
        self._publish(call, "start", events.SandboxStart(sandbox_id=request.sandbox_id))
        return answer

    async def Platform(self, request: pb.ControllerPlatformRequest, call: Call) -> pb.ControllerPlatformResponse:
        hop, key = self._about(request.sandboxer, request.sandbox_id, call.optional_namespace)
        return await self._passed(hop, key, request, pb.ControllerPlatformResponse, call, repeats=_READ)

    async def Stop(self, request: pb.ControllerStopRequest, call: Call) -> pb.ControllerStopResponse:
        """The sandbox has ``timeout_secs`` to end, and its controller the usual time besides."""
        hop, key = self._about(request.sandboxer, request.sandbox_id, call.optional_namespace)
        timeout = self._timeout + request.timeout_secs
        return await self._passed(hop, key, request, pb.ControllerStopResponse, call, timeout=timeout)

    async def Wait(self, request: pb.ControllerWaitRequest, call: Call) -> pb.ControllerWaitResponse:
        """As long as the sandbox lives; asked again when its controller comes back."""
        hop, key = self._about(request.sandboxer, request.sandbox_id, call.namespace)
        answer = await self._passed(hop, key, request, pb.ControllerWaitResponse, call, timeout=None, repeats=math.inf)
        exited = events.SandboxExit(sandbox_id=request.sandbox_id, exit_status=answer.exit_status)
        exited.exited_at.CopyFrom(answer.exited_at)
        self._publish(call, "exit", exited)
        return answer

    async def Status(self, request: pb.ControllerStatusRequest, call: Call) -> pb.ControllerStatusResponse:
        hop, key = self._about(request.sandboxer, request.sandbox_id, call.optional_namespace)
        answer = await self._passed(hop, key, request, pb.ControllerStatusResponse, call, repeats=_READ)
        answer.sandbox_id = request.sandbox_id
        return answer

    async def Shutdown(self, request: pb.ControllerShutdownRequest, call: Call) -> pb.ControllerShutdownResponse:
        hop, key = self._about(request.sandboxer, request.sandbox_id, call.optional_namespace)
        return await shielded(self._shut_down(hop, key, request, call))

    async def _shut_down(
        self, hop: Hop, key: Key, request: pb.ControllerShutdownRequest, call: Call
    ) -> pb.ControllerShutdownResponse:
        try:
            answer = await self._passed(hop, key, request, pb.ControllerShutdownResponse, call)
        except errors.NotFound as error:
            if not error.injected:
                await self.notes.note(key, "")
            raise
        await self.notes.note(key, "")
        return answer

    async def Metrics(self, request: pb.ControllerMetricsRequest, call: Call) -> pb.ControllerMetricsResponse:
        hop, key = self._about(request.sandboxer, request.sandbox_id, call.optional_namespace)
        return await self._passed(hop, key, request, pb.ControllerMetricsResponse, call, repeats=_READ)

    async def Update(self, request: pb.ControllerUpdateRequest, call: Call) -> pb.ControllerUpdateResponse:
        hop, key = self._about(request.sandboxer, request.sandbox_id, call.optional_namespace)
        if not request.HasField("sandbox"):
            raise errors.Unknown("sandbox can not be nil")
        request.sandbox.runtime.SetInParent()
        return await self._passed(hop, key, request, pb.ControllerUpdateResponse, call)

    # -- how a call is passed on

    def _about(self, sandboxer: str, id_: str, namespace: str) -> tuple[Hop, Key]:
        hop = self._routes.sandboxer(sandboxer)
        return hop, (namespace, hop.name, id_)

    async def _passed(
        self,
        hop: Hop,
        key: Key,
        request: Message,
        answer: type[M],
        call: Call,
        *,
        timeout: float | None = -1.0,
        repeats: float = 0,
    ) -> M:
        """The answer of the service that has the sandbox. The call may take ``timeout`` seconds (-1: the usual ones),
        and is made again so often when its service goes away meanwhile.
        """
        limit = self._timeout if timeout == -1.0 else timeout
        while True:
            upstream = hop.having(self.notes.backend(key), call.namespace if key[0] else "")
            channel = await upstream.ready(call)
            try:
                data = await channel.unary(call.method, request.SerializeToString(), raw_headers(call, hop.name), limit)
            except errors.Disconnected as error:
                if error.injected or repeats < 1:
                    raise
                repeats -= 1
            else:
                try:
                    return answer.FromString(data)
                except DecodeError:
                    raise errors.Internal(
                        f"service {upstream.name} answered {call.method} with another message"
                    ) from None

    def _publish(self, call: Call, what: str, event: Message) -> None:
        self._exchange.publish(call.namespace, f"/sandboxes/{what}", kit_any.pack(event))
