"""The wire: gRPC over HTTP/2 on asyncio, without grpcio. The transport of ``kit.rpc`` unless the configuration says
otherwise.

It is no service: it is beside the kit, of which it uses what a call is and what a transport must be; nobody but the kit
uses it.

From the bottom up: :mod:`frames` and :mod:`headers` are bytes; :mod:`limits` what a peer may do; :mod:`connection`
(what the peer says) and :mod:`sending` (what we say) the protocol, which decides and does no I/O; :mod:`messages`
gRPC's framing; :mod:`link` a connection on a socket; :mod:`server`, :mod:`channel` and :mod:`relay` answer calls, make
them, and pass them on. docs/wire.md tells why it is there and what it costs.
"""
