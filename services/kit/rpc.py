"""gRPC for handlers that do not know gRPC. This module exports what code outside of the kit and the wire uses; the
modules behind it are not imported there.

A *servicer* is an object with one method for each RPC it has, named as in its .proto file. It is bound by its service's
descriptor, so no generated code runs (stubs are for mypy). An RPC that the object lacks answers UNIMPLEMENTED::

    class ContentServicer:
        SERVICE = content_stubs.CONTENT

        async def Info(self, request, call): ...        # unary: returns the response
        async def Read(self, request, call): ...        # server stream: an async generator of responses
        async def Write(self, requests, call): ...      # client stream: ``requests`` is an async iterator

Handlers raise :mod:`services.kit.errors`. What the machine cannot do, such as writing to a full disk, becomes one of
them. Any other exception is a bug: it is logged once, and answered INTERNAL. If a client cancels a call, the handler's
task is cancelled; work that must not stop half way runs under :func:`shielded`.

The modules behind this one, each of which knows only those before it: :mod:`~services.kit.call`, what a call is;
:mod:`~services.kit.relays`, what a relay decides; :mod:`~services.kit.transport`, what a transport must be;
:mod:`~services.kit.around`, what may stand around calls; :mod:`~services.kit.chosen`, which transport is used;
:mod:`~services.kit.channel`, calls to other processes; :mod:`~services.kit.shielding`, work that outlives its caller.

Two *transports* carry the calls, and only :mod:`~services.kit.chosen` knows which: :mod:`services.wire`, our own
HTTP/2, and :mod:`services.kit.grpcio`, Google's library. ``[grpc] transport`` or SPLITD_GRPC_TRANSPORT chooses. They
speak the same protocol, so processes of both kinds talk to each other. Everything is asyncio; blocking work belongs in
``asyncio.to_thread`` or in a worker program.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from services.kit import chosen, errors, metrics, sockets
from services.kit.around import Around, silent
from services.kit.call import (
    CLIENT,
    ERROR_LIMIT,
    HOPS,
    LEASE,
    LONG,
    MESSAGE_LIMIT,
    MOST_HOPS,
    NAMESPACE,
    ONLY_WANTED,
    RAW,
    STALL,
    STOPPING,
    STREAMS,
    TRACE,
    UNARY,
    UNARY_STALL,
    VERIFY,
    Arity,
    Call,
    Headers,
    Metadata,
    Pieces,
    Servicer,
    caller,
    method_path,
    on_own_behalf,
)
from services.kit.channel import Channel, Client, Stream
from services.kit.chosen import TRANSPORTS, choose, transport
from services.kit.observer import Entrance
from services.kit.relays import (
    Answers,
    Coordinated,
    Elsewhere,
    Hop,
    Meaning,
    Question,
    Relay,
    Remembered,
    Route,
    Upstream,
)
from services.kit.shielding import shielded, shielded_work_done
from services.kit.transport import SERVING, Answering, CarriedStream, Method, Methods, Pings, Server

if TYPE_CHECKING:
    import ssl

__all__ = [
    "CLIENT",
    "ERROR_LIMIT",
    "HOPS",
    "LEASE",
    "LONG",
    "MESSAGE_LIMIT",
    "MOST_HOPS",
    "NAMESPACE",
    "ONLY_WANTED",
    "RAW",
    "STALL",
    "STOPPING",
    "STREAMS",
    "TRACE",
    "TRANSPORTS",
    "UNARY",
    "UNARY_STALL",
    "VERIFY",
    "Answering",
    "Answers",
    "Arity",
    "Around",
    "Call",
    "CarriedStream",
    "Channel",
    "Client",
    "Coordinated",
    "Elsewhere",
    "Entrance",
    "Headers",
    "Hop",
    "Meaning",
    "Metadata",
    "Method",
    "Methods",
    "Pieces",
    "Pings",
    "Question",
    "Relay",
    "Remembered",
    "Route",
    "Server",
    "Servicer",
    "Stream",
    "Upstream",
    "caller",
    "choose",
    "load",
    "method_path",
    "on_own_behalf",
    "serving",
    "shielded",
    "shielded_work_done",
    "silent",
    "transport",
]


@contextlib.asynccontextmanager
async def serving(
    address: Path | str,
    servicers: Iterable[Servicer],
    *,
    relay: Relay | None = None,
    grace: float = 5.0,
    long: frozenset[str] = LONG,
    relayed: bool = False,
    look: float = sockets.LOOK,
    entrance: Entrance | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Server]:
    """Serve on a unix socket (mode 0600) until the block ends, then drain for ``grace`` seconds.

    grpc.health.v1.Health is added unless a servicer has it, and containerd's Version. The caller must hold the lock of
    the directory that it serves (``kit.process.owned``), since only the holder may replace the socket. A path longer
    than the kernel's 107 bytes is refused with a clear error.

    ``relayed`` is for a socket whose callers are the node's own processes: there one connection carries the calls of
    many clients, each of which the gateway has bounded. It accepts many calls sent as one (``kit.many``).

    An address that is a string is ``host:port``, for tests that drive a server by programs without unix sockets. Port 0
    takes a free one, which ``server.address`` then has.

    ``look``: seconds between looks whether the socket still exists; if it was removed, it is made again.

    ``entrance`` is for a socket of the node's edge: it decides which traces the calls belong to.

    ``tls`` is for HOST:PORT, and for our own wire only.
    """
    if isinstance(address, Path):
        sockets.check_path(address)
    servicers = list(servicers)
    health = dict.fromkeys(["", *(s.SERVICE.full_name for s in servicers)], SERVING)
    if "grpc.health.v1.Health" not in health:
        from services.kit.health import HealthServicer

        servicers.append(HealthServicer(health, trouble=lambda: server.trouble))
    from services.kit.version_server import VersionServicer

    servicers.append(VersionServicer())
    many = None
    if relayed:
        from services.kit.many import ManyServicer

        servicers.append(many := ManyServicer())
    if metrics.counts() and (relayed or relay is None):  # not on containerd.sock, which is for clients
        from services.kit.metrics_server import MetricsServicer

        servicers.append(MetricsServicer())
    methods = Methods(servicers, relay, long)
    server = chosen.server(address, methods, health, relayed=relayed)
    server.entrance = entrance
    server.tls = tls
    if tls is not None and chosen.transport() == "grpcio":
        raise errors.Unimplemented("TLS at a port that is served by grpcio")
    if many is not None:
        many.server = server
    await server.start(look)
    try:
        yield server
    finally:
        await server.stop(grace)
        if isinstance(address, Path):
            with contextlib.suppress(FileNotFoundError):
                address.unlink()


def load() -> None:
    """Import what calls will need, while the process loads its other modules: later, the installed code might be of
    another release.
    """
    importlib.import_module("services.kit.many")
    chosen.carrier()
