"""What a peer may do: every bound of the wire, with its reason. Whoever passes one loses the stream or the connection;
nobody else notices.

The bounds are kept where their bytes, frames and calls are counted:

    connection.py, sending.py, headers.py    frames, windows, streams, resets, idle frames, header lists
    messages.py, server_call.py, relay.py    messages: each one, all that are incomplete, and the time of a request
    link.py                                  answers to a peer that does not read
    clients.py                               calls of one client that wait, and that are worked on
    server.py                                connections, and when their times are over: handshakes, requests

Our peers are local, and root's; but a client with a bug reaches every bound that an attacker would, and a node must
outlive it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.kit.settings import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one connection; sizes in bytes, times in seconds. Rates are of token buckets: so many at once, so
    many more each second.
    """

    streams: int = 4096
    """Calls at once, those included that the peer has reset while their handlers still run (CVE-2023-44487). Each
    kubelet or dockerd has a connection of its own, with a Wait for each container: a thousand is usual, grpc-go knows
    no bound. One more is REFUSED_STREAM, which clients repeat.
    """
    calls: int = 64
    """Unary calls at once that are worked on, those aside that last (Wait): more begin as these end, and up to 800 a
    second though none does, since a call may hang. What the services behind a gateway have to do, they do in the order
    of its coming: a client that asks for much at once is not to be before all others.
    """
    header_list: int = 64 << 10
    """Of a header list, as RFC 9113 counts it, decoded: what grpc-go and grpcio take by default is less. An HPACK
    bomb ends here.
    """
    header_count: int = 256
    """Fields of a header list: each costs more than its bytes."""
    header_block: int = 96 << 10
    """Of an encoded block, CONTINUATIONs included: before it is decoded (CVE-2024-27316)."""
    continuations: int = 32
    """CONTINUATION frames of one block: empty ones cost no bytes of it."""
    frame: int = 256 << 10
    """Largest DATA frame that we take (SETTINGS_MAX_FRAME_SIZE) from a peer that has sent more than a window: until
    then it is HTTP/2's 16 KiB. Its bytes pass on as they come, so it costs no memory; but it holds up the other
    streams.
    """
    window: int = 64 << 10
    """Of a new stream: what each stream can make us hold before anybody has looked at it."""
    window_most: int = 1 << 20
    """What the window of a stream grows to while its reader keeps up."""
    connection_window: int = 16 << 20
    """Of the connection. It is given back as bytes come, so that a stream whose reader sleeps holds up no other:
    streams are bounded by their own windows.
    """
    message: int = 16 << 20
    """Of one message, inflated: containerd's own limit."""
    assembling: int = 64 << 20
    """Of incomplete messages of all streams of a connection. A call that goes beyond it is RESOURCE_EXHAUSTED."""
    unread: int = 1 << 20
    """Of answers to a peer that does not read, where it makes us answer without flow control (SETTINGS, PING,
    refusals): beyond it, we do not read either, and after the time of a request the connection ends.
    """
    untaken: int = 8 << 20
    """Of answers that wait for a client which gives them no window, on all its streams: beyond it, no more of its calls
    are started until it reads. So one message (``message``) may wait above it.
    """
    resets: int = 10_000
    """Streams that the peer may reset at once (CVE-2023-44487), or make us reset (CVE-2025-8671) ..."""
    resets_rate: int = 1000
    """... and per second. Clients that give up on thousands of calls at once are usual (Ctrl-C in a loop), those
    that do so all the time are not: the connection ends.
    """
    resets_slow: int = 1000
    """Beyond so many at once the peer is slowed: it is not read for moments ..."""
    resets_slow_rate: int = 4000
    """... so that no more than these are dealt with in a second."""
    idle_frames: int = 2000
    """Frames that bring nothing (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA, unknown ones): so many at
    once ...
    """
    idle_frames_rate: int = 500
    """... and per second ..."""
    idle_frames_earned: int = 8
    """... and so many more for each call that it opens and each frame that we send it, unless tiny windows cut that
    (CVE-2019-9511): readers acknowledge what they read. grpc-go and grpcio send two for each; docs/wire.md has the
    table.
    """
    handshake: Seconds = 10.0
    """Until the preface and the first SETTINGS are there."""
    request: Seconds = 60.0
    """Until the request of a call that is not a stream is complete. Nobody works on it before that."""
    linger: Seconds = 5.0
    """From the end of a connection until what its peer has not read by then is dropped."""
    connections: int = 16384
    """Of a server, which takes no more than 7/8 of its open files either. Idle ones cost 3 KB each, 6 KB once they have
    called; at the bound, those that have been idle longest are told to go (GOAWAY, NO_ERROR), and their clients connect
    again when they call. If none is idle, the new one is told.
    """

    def relayed(self) -> Limits:
        """For a connection that carries the calls of many clients, as a gateway's to a service does: what each client
        may do was bounded where it came in, and if their sum were bounded here, one client would use up what all have.
        What waits for each is not known there (:meth:`of_each`).
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
        """For each of those clients."""
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
    """The limits of this process from here on."""
    global _configured
    _configured = limits


def configured() -> Limits:
    """The limits of this process."""
    return _configured
