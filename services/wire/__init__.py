"""The wire: gRPC over HTTP/2 on asyncio, without grpcio. It is the transport of ``kit.rpc`` unless the configuration
says otherwise.

It is not a service. It is beside the kit, whose ideas of a call and of a transport it uses; only the kit uses it.

From the bottom up: :mod:`frames` and :mod:`headers` are bytes; :mod:`limits` bounds what a peer may do;
:mod:`connection` (what the peer says) and :mod:`sending` (what we say) are the protocol, which decides and does no I/O;
:mod:`messages` is gRPC's framing; :mod:`link` is a connection on a socket; :mod:`server`, :mod:`channel` and
:mod:`relay` answer calls, make them, and pass them on. docs/wire.md says why it exists and what it costs.
"""
