"""splitd.taps.v1.Taps, on the internal socket: an operator's taps and faults."""

from __future__ import annotations

from collections.abc import AsyncIterator

from api.containerd.services.containers.v1 import containers_stubs
from api.containerd.services.content.v1 import content_stubs
from api.containerd.services.diff.v1 import diff_stubs
from api.containerd.services.images.v1 import images_stubs
from api.containerd.services.leases.v1 import leases_stubs
from api.containerd.services.namespaces.v1 import namespaces_stubs
from api.containerd.services.sandbox.v1 import sandbox_stubs
from api.containerd.services.snapshots.v1 import snapshots_stubs
from api.containerd.services.streaming.v1 import streaming_stubs
from api.containerd.services.tasks.v1 import tasks_stubs
from api.containerd.services.transfer.v1 import transfer_stubs
from api.splitd.localfiles.v1 import localfiles_stubs
from api.splitd.removals.v1 import removals_stubs
from api.splitd.taps.v1 import taps_pb2 as pb
from api.splitd.taps.v1 import taps_stubs
from gateway import choices
from gateway.faults import Fault, Faults, Spec
from gateway.instruments import Standing
from gateway.remote import SERVICE as RECORDS
from gateway.routes import Routes
from gateway.taps import Event, Passed, Tap, Taps
from services.kit.rpc import Call

METHODS: choices.Methods = {
    kind: {method.name for service in services for method in service.methods}
    for kind, services in {
        "content": (content_stubs.CONTENT, localfiles_stubs.LOCAL_FILES, removals_stubs.REMOVALS),
        "snapshots": (snapshots_stubs.SNAPSHOTS, removals_stubs.REMOVALS),
        "diff": (diff_stubs.DIFF,),
        "images": (images_stubs.IMAGES, streaming_stubs.STREAMING, transfer_stubs.TRANSFER),
        "tasks": (tasks_stubs.TASKS,),
        "sandbox": (sandbox_stubs.CONTROLLER,),
        "metadata": (
            containers_stubs.CONTAINERS,
            content_stubs.CONTENT,
            leases_stubs.LEASES,
            namespaces_stubs.NAMESPACES,
            sandbox_stubs.STORE,
            snapshots_stubs.SNAPSHOTS,
            RECORDS,
        ),
    }.items()
}
"""The methods whose calls leave by each kind of route."""


class TapsServicer:
    """Taps end with the call that asked for them."""

    SERVICE = taps_stubs.TAPS

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        standing = Standing(routes)
        self.taps = Taps(standing)
        self.faults = Faults(standing)

    async def Tap(self, request: pb.TapRequest, call: Call) -> AsyncIterator[pb.TapResponse]:
        tap = self.taps.begin(self._choice(request.choice), messages=request.messages)
        try:
            yield pb.TapResponse()  # from here on calls are seen
            while True:
                events, dropped = await tap.events()
                yield pb.TapResponse(events=map(_event, events), dropped=dropped)
        finally:
            self.taps.end(tap)

    async def BeginFault(self, request: pb.BeginFaultRequest, call: Call) -> pb.Fault:
        spec = Spec(
            choice=self._choice(request.choice),
            latency=request.latency / 1e9,
            error=request.error,
            share=request.share,
            seconds=request.duration / 1e9,
            when="after" if request.after else "before",
            seed=request.seed if request.HasField("seed") else None,
        )
        return _fault(self.faults.begin(spec))

    async def StopFaults(self, request: pb.StopFaultsRequest, call: Call) -> pb.StopFaultsResponse:
        names = [request.id] if request.id else [fault.name for fault in self.faults.all()]
        return pb.StopFaultsResponse(faults=[_fault(self.faults.stop(name)) for name in names])

    async def List(self, request: pb.ListRequest, call: Call) -> pb.ListResponse:
        return pb.ListResponse(faults=map(_fault, self.faults.all()), taps=map(_tap, self.taps.all()))

    def _choice(self, asked: pb.Choice) -> choices.Choice:
        names = [upstream.name for upstream in self._routes.upstreams]
        return choices.choice(asked.service, asked.method, asked.namespace, names, METHODS)


def _choice(choice: choices.Choice) -> pb.Choice:
    return pb.Choice(service=choice.service, method=choice.method, namespace=choice.namespace)


def _event(event: Event) -> pb.Event:
    if isinstance(event, Passed):
        message = pb.Message(path=event.path, received=event.received, bytes=event.size, text=event.text)
        return pb.Event(call=event.call, time=event.time, message=message)
    return pb.Event(
        call=event.call,
        time=event.time,
        ended=pb.Ended(
            service=event.service,
            path=event.path,
            namespace=event.namespace,
            sent=event.sent,
            sent_bytes=event.sent_bytes,
            received=event.received,
            received_bytes=event.received_bytes,
            duration=event.duration,
            code=event.code,
            message=event.message,
            trace=event.trace,
        ),
    )


def _fault(fault: Fault) -> pb.Fault:
    spec = fault.spec
    return pb.Fault(
        id=fault.name,
        asked=pb.BeginFaultRequest(
            choice=_choice(spec.choice),
            latency=int(spec.latency * 1e9),
            error=spec.error,
            share=spec.share,
            duration=int(spec.seconds * 1e9),
            after=spec.when == "after",
            seed=spec.seed,
        ),
        begun=fault.begun,
        left=int(fault.left * 1e9),
        seen=fault.seen,
        injected=fault.injected,
        words=str(spec),
    )


def _tap(tap: Tap) -> pb.Tap:
    return pb.Tap(
        choice=_choice(tap.choice), messages=tap.messages, begun=tap.begun, seen=tap.seen, dropped=tap.dropped
    )
