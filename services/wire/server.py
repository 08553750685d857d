"""Serves handlers over the wire: a socket, its connections, and the owner of each of their streams, which answers the
call here or passes it through.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

from services.kit import errors, sockets
from services.kit.call import CLIENT
from services.kit.deadlines import Deadlines
from services.kit.relays import Relay
from services.kit.transport import Method, Methods, Server
from services.wire import messages
from services.wire.answers import HEAD, refusal
from services.wire.clients import Client, Names, field
from services.wire.events import Opened
from services.wire.headers import Head
from services.wire.limits import Limits, configured
from services.wire.link import Link
from services.wire.plans import planned
from services.wire.relay import Passage
from services.wire.server_call import NotGrpc, ServerCall
from services.wire.streams import Stream

log = logging.getLogger(__name__)

_SWEEP = 5.0
"""Seconds between two looks for requests and handshakes that are overdue; at most half of their shortest limit."""
_LEAVING = 16
"""Idle connections that are told to leave at once if there are too many: finding them takes a millisecond or two."""
_BACKLOG = 4096
"""Connections that may wait to be accepted: as many as the kernel allows by default."""


class WireServer(Server):
    """A listening socket and its connections."""

    def __init__(
        self,
        address: Path | str,
        methods: Methods,
        health: dict[str, int],
        limits: Limits | None = None,
        *,
        relayed: bool = False,
    ) -> None:
        """``relayed``: the callers are gateways, and others of the node's own processes."""
        super().__init__(address, methods, health)
        limits = limits or configured()
        self.limits = limits.relayed() if relayed else limits
        self.of_each = limits.of_each() if relayed else None
        """Limits of each client that a gateway names."""
        self.names = Names()
        self.links: set[ServerLink] = set()
        self.passages: set[Passage] = set()
        self.changed = asyncio.Event()
        """Set when a call or a connection has ended."""
        self.deadlines = Deadlines(asyncio.get_running_loop())
        self._listener: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._sweep_seconds = max(min(_SWEEP, self.limits.handshake / 2, self.limits.request / 2), 0.1)
        self._most = min(self.limits.connections, _files() * 7 // 8)

    def calls(self) -> list[str]:
        return [*super().calls(), *(passage.head.path for passage in self.passages)]

    async def start(self, look: float = sockets.LOOK) -> None:
        listening = _tcp(self.address) if isinstance(self.address, str) else _unix(self.address)
        if isinstance(self.address, str):
            self.address = ":".join(map(str, listening.getsockname()[:2]))
        await self._listen(listening)
        self._sweeping = asyncio.get_running_loop().call_later(self._sweep_seconds, self._sweep)
        if isinstance(self.address, Path):
            self._watching = sockets.watching(self.address, self._listen_again, look)

    async def _listen(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        serve = loop.create_unix_server if listening.family == socket.AF_UNIX else loop.create_server
        # both libraries call listen again
        self._listener = await serve(lambda: ServerLink(self), sock=listening, backlog=_BACKLOG, ssl=self.tls)

    async def _listen_again(self) -> None:
        """The socket was removed. Connected clients stay connected."""
        assert isinstance(self.address, Path)
        if self._listener is not None:
            self._listener.close()
        await self._listen(_unix(self.address))

    def admit(self, link: ServerLink) -> None:
        """A new connection. At the bound, those that have been idle longest are told to leave, first those that never
        completed a handshake. If all are busy, the new one is.
        """
        if self.draining:
            self.links.add(link)
            link.leave("the service is stopping")
            return
        leaving = []
        if len(self.links) >= self._most:
            idle = [other for other in self.links if not other.busy]
            leaving = heapq.nsmallest(_LEAVING, idle, key=lambda other: (other.ready, other.since)) or [link]
        self.links.add(link)
        for other in leaving:
            other.leave("too many connections")

    def _sweep(self) -> None:
        self._sweeping = asyncio.get_running_loop().call_later(self._sweep_seconds, self._sweep)
        now = time.monotonic()
        for link in list(self.links):
            try:
                link.sweep(now)
            except Exception:  # in this connection: the others must still be checked
                log.exception("a connection could not be checked, and is closed")
                link.abort("an internal error")

    async def close(self, grace: float) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._watching is not None:
            self._watching.cancel()
        if self._listener is not None:
            self._listener.close()
        for link in list(self.links):
            link.leave("the service is stopping")
        for passage in list(self.passages):
            if passage.long:
                passage.stopped()
        await self._until(lambda: not any(link.busy for link in self.links), grace)
        for task in list(self.running):
            task.cancel()
        for passage in list(self.passages):
            passage.stopped()
        await self._until(lambda: not self.running, 1.0)
        for link in list(self.links):
            link.flush()
            link.close()
        await self._until(lambda: not self.links, 1.0)  # what is written should arrive
        for link in list(self.links):
            link.abort("the service has stopped")

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for a condition that may change with :attr:`changed`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()


def _files() -> int:
    """The number of files that this process may have open. Without a free one, uvloop would stop listening."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def _unix(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)  # the socket gives access to the node: it is its owner's only, from its first instant
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(mask)
    listening.listen(_BACKLOG)
    return listening


def _tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)


class ServerLink(Link):
    """A server's side of a connection."""

    def __init__(self, server: WireServer) -> None:
        super().__init__(server.limits, client=False, one_client=server.of_each is None)
        self.server = server
        self.since = time.monotonic()
        """When it was last busy."""
        self.incomplete: dict[ServerCall | Passage | NotGrpc, float] = {}
        """Calls whose request is still arriving, and when it must be complete."""
        self.assembling = 0
        """Bytes of incomplete messages."""
        self.starting: list[tuple[Passage, float | None]] = []
        """Calls that are sent to their upstream at the end of this turn, with the seconds they may take. A call that is
        reset at once is never sent.
        """
        self.client = self.connection.account = Client(self.loop, server.limits)
        self._clients: dict[str | bytes, Client] = {}
        """The clients whose calls a gateway relays here, by the number in the header ``splitd-client``."""
        self._number = 0
        self._leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.server.admit(self)

    @property
    def busy(self) -> bool:
        """Whether there are calls."""
        return bool(self.connection.streams or self.connection.lingering)

    def opened(self, event: Opened) -> None:
        stream, head, end = event
        server = self.server
        if server.of_each is not None and (name := head.headers.get(CLIENT)):
            stream.account = self._named(name, server.of_each)
        if head.method != "POST" or not head.is_grpc():
            stream.owner = NotGrpc(self, stream, head)
            stream.owner.begin(end)
            return
        method = server.methods.of_servicers(head.path, head.headers)
        if method is not None:
            self.start(ServerCall(self, stream, head, method), end)
        elif server.methods.relay is None:
            service, _, name = head.path.lstrip("/").rpartition("/")
            self.refuse(stream, errors.Unimplemented.verbatim(f"unknown method {name} for service {service}"))
        else:
            self._pass(stream, head, server.methods.relay, end)

    def _named(self, name: str | bytes, limits: Limits) -> Client:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = Client(self.loop, limits)
        return client

    def _pass(self, stream: Stream, head: Head, relay: Relay, end: bool) -> None:
        try:
            plan = planned(head, relay, self.server.methods)
        except errors.NodeError as error:
            self.refuse(stream, error)
            return
        if isinstance(plan, Method):
            self.start(ServerCall(self, stream, head, plan), end)
        else:
            stream.owner = Passage(self.server, self, stream, head, plan)
            stream.owner.begin(end)

    def start(self, call: ServerCall, end: bool) -> None:
        """Begin a call that is answered here."""
        head = call.head
        call.stream.owner = call
        if head.problem:
            call.fail(errors.Internal(head.problem))
        elif head.encoding and head.encoding not in messages.ENCODINGS:
            call.call.trailing.append(("grpc-accept-encoding", ",".join(messages.ENCODINGS)))
            call.fail(
                errors.Unimplemented.verbatim(
                    f'grpc: Decompressor is not installed for grpc-encoding "{head.encoding}"'
                )
            )
        else:
            call.begin(end)

    def on_turn(self) -> None:
        if self.starting:
            starting, self.starting = self.starting, []
            for passage, limit in starting:
                if passage.answers:
                    self.client.admit(passage, limit, counted=passage.counted)
                elif not passage.over:
                    passage.start(limit)

    @property
    def number(self) -> int:
        """The number by which services behind this gateway tell this connection's calls from others."""
        if not self._number:
            self._number = self.server.names.take()
        return self._number

    @property
    def name(self) -> bytes:
        """The header field with that number, encoded."""
        return field(self.number)

    def refuse(self, stream: Stream, error: errors.NodeError) -> None:
        """Answer with an error only."""
        self.connection.send_tail(stream, HEAD + refusal(error))
        self.flush_soon()
        self.on_idle()

    def leave(self, reason: str) -> None:
        """Let the calls end, accept no new ones, then close."""
        self._leaving = True
        self.connection.drain(reason)
        self.flush()
        self.on_idle()

    def on_idle(self) -> None:
        if not self.busy:
            self.since = time.monotonic()
            self._give_name_back()
            if self._leaving:
                self.server.changed.set()
                self.flush()
                self.close()

    def _give_name_back(self) -> None:
        if self._number:
            self.server.names.give_back(self._number)
            self._number = 0

    def on_end(self, reason: str) -> None:
        self._give_name_back()
        for client in (self.client, *self._clients.values()):
            client.gone()
        if self.server.entrance is not None:
            self.server.entrance.left(self)
        self.server.links.discard(self)
        self.server.changed.set()

    def sweep(self, now: float) -> None:
        """End what is overdue: a handshake, requests, and the reading of answers that no window holds back."""
        if not self.ready and now - self.since > self.limits.handshake:
            self.abort("no HTTP/2 after the connection was opened")
            return
        if self.deaf_since is not None and now - self.deaf_since > self.limits.request:
            log.info("closing a connection: its peer makes us answer, and does not read")
            self.abort("the peer does not read")
            return
        for call, until in list(self.incomplete.items()):
            if now > until:
                call.overdue()
