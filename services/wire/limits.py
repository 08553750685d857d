"""Every bound on what a peer may do on the wire, with its reason. A peer that passes one loses the stream or the
connection; no other client notices.

The bounds are checked where their bytes, frames and calls are counted:

    connection.py, sending.py, headers.py    frames, windows, streams, resets, idle frames, header lists
    messages.py, server_call.py, relay.py    messages: each one, all that are incomplete, and the time of a request
    link.py                                  answers to a peer that does not read
    clients.py                               calls of one client that wait, and that are in work
    server.py                                connections, and when their times are over: handshakes, requests

Our peers are local, and run as root. But a client with a bug reaches every bound that an attacker would, and a node
must survive it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.kit.settings import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one connection. Sizes are in bytes, times in seconds. Rates are token buckets: so many at once, and so
    many more each second.
    """

    streams: int = 4096
    """Calls at once, including those that the peer has reset while their handlers still run (CVE-2023-44487). Each
    kubelet or dockerd has a connection of its own, with a Wait for each container: a thousand is usual, and grpc-go has
    no bound. One more is answered REFUSED_STREAM, and clients repeat it.
    """
    calls: int = 64
    """Unary calls that are in work at once, except those that last (Wait). More begin as these end; if none ends, up to
    800 a second begin, since a call may hang. Services behind a gateway work in the order of arrival, so a client that
    asks for much at once must not get ahead of all others.
    """
    header_list: int = 64 << 10
    """A decoded header list, in bytes as RFC 9113 counts them. The defaults of grpc-go and grpcio are lower. An HPACK
    bomb is stopped here.
    """
    header_count: int = 256
    """Fields of a header list: each costs more than its bytes."""
    header_block: int = 96 << 10
    """An encoded header block, with its CONTINUATIONs, before it is decoded (CVE-2024-27316)."""
    continuations: int = 32
    """CONTINUATION frames of one block: empty ones have no bytes to count."""
    frame: int = 256 << 10
    """The largest DATA frame that we accept (SETTINGS_MAX_FRAME_SIZE) from a peer that has sent more than a window;
    before that it is HTTP/2's 16 KiB. Its bytes pass on as they come, so it costs no memory, but it delays the other
    streams.
    """
    window: int = 64 << 10
    """The window of a new stream: the bytes that each stream can make us hold before anything looks at them."""
    window_most: int = 1 << 20
    """The largest window of a stream. The window grows while the stream's reader keeps up."""
    connection_window: int = 16 << 20
    """The window of the connection. It is given back as bytes come, so that a stream whose reader sleeps blocks no
    other; streams are bounded by their own windows.
    """
    message: int = 16 << 20
    """One message, inflated: containerd's own limit."""
    assembling: int = 64 << 20
    """Incomplete messages of all streams of a connection. A call that goes beyond it is answered RESOURCE_EXHAUSTED."""
    unread: int = 1 << 20
    """Unread answers to a peer that makes us answer without flow control (SETTINGS, PING, refusals). Beyond it we do
    not read from the peer either, and after the time of a request the connection ends.
    """
    untaken: int = 8 << 20
    """Answers on all streams that wait for a client which gives them no window. Beyond it no more of its calls are
    started until it reads. So one message (``message``) may wait in addition.
    """
    resets: int = 10_000
    """Streams that the peer may reset at once (CVE-2023-44487), or make us reset (CVE-2025-8671)."""
    resets_rate: int = 1000
    """The same, per second. Clients that cancel thousands of calls at once are usual (Ctrl-C in a loop). Clients that
    do so all the time are not, and their connection ends.
    """
    resets_slow: int = 1000
    """Resets at once, above which the peer is slowed: it is not read from for moments."""
    resets_slow_rate: int = 4000
    """Resets of a slowed peer that are handled in a second, at most."""
    idle_frames: int = 2000
    """Frames without content (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA, unknown ones) that are allowed at
    once.
    """
    idle_frames_rate: int = 500
    """The same, per second."""
    idle_frames_earned: int = 8
    """Frames without content that are allowed in addition, for each call that the peer opens and each frame that we
    send it (of a large one, for each 16 KiB), unless tiny windows cut that frame (CVE-2019-9511): readers acknowledge
    what they read. grpc-go and grpcio send two for each; docs/wire.md has the table.
    """
    handshake: Seconds = 10.0
    """Time until the preface and the first SETTINGS must have come."""
    request: Seconds = 60.0
    """Time until the request of a call that is not a stream must be complete. No handler works on it before that."""
    linger: Seconds = 5.0
    """Time from the end of a connection until bytes that its peer has not read by then are dropped."""
    connections: int = 16384
    """Connections of a server; it also accepts at most 7/8 of its open files. An idle one costs 3 KB, or 6 KB once it
    has made calls. At the bound, those that have been idle longest are told to leave (GOAWAY, NO_ERROR), and their
    clients connect again when they call. If none is idle, the new one is told to.
    """

    def relayed(self) -> Limits:
        """The bounds of a connection that carries the calls of many clients, as a gateway's to a service does. Each
        client was bounded at the gateway. If their sum were bounded here, one client could use up what all have. What
        waits for each client is bounded separately (:meth:`of_each`).
        """
        every = 1 << 30
        return replace(
            self,
            streams=every,
            calls=every,
            request=float(every),
            assembling=every,
            untaken=every,
            resets=every,
            resets_rate=every,
            resets_slow=every,
            resets_slow_rate=every,
            idle_frames=every,
            idle_frames_rate=every,
        )

    def of_each(self) -> Limits:
        """The bounds of each of those clients."""
        return replace(self.relayed(), untaken=self.untaken)

    def __post_init__(self) -> None:
        for name in (
            "streams",
            "calls",
            "header_list",
            "header_count",
            "header_block",
            "continuations",
            "message",
            "assembling",
            "unread",
            "untaken",
            "resets",
            "resets_rate",
            "resets_slow",
            "resets_slow_rate",
            "idle_frames",
            "idle_frames_rate",
            "idle_frames_earned",
            "connections",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")
        if not 1 << 14 <= self.frame < 1 << 24:
            raise ValueError(f"frame: {self.frame} is not between 16384 and 16777215")
        for name in ("window", "window_most", "connection_window"):
            if not (1 << 16) - 1 <= getattr(self, name) < 1 << 31:
                raise ValueError(f"{name}: {getattr(self, name)} is not between 65535 and 2147483647")
        if self.window_most < self.window:
            raise ValueError(f"window_most: {self.window_most} is below window")


_configured = Limits()


def configure(limits: Limits) -> None:
    global _configured
    _configured = limits


def configured() -> Limits:
    return _configured
