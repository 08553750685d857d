"""The transport of this process: the wire, or grpcio if ``[grpc] transport`` or SPLITD_GRPC_TRANSPORT says so. The
other one is not imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from services.kit import errors
from services.kit.addresses import Address
from services.kit.transport import Carrier, Methods, Pings, Server

TRANSPORTS = ("wire", "grpcio")

_chosen = "wire"


def choose(name: str) -> None:
    """Set the transport of this process, unless the environment names another."""
    global _chosen
    _chosen = name


def transport() -> str:
    """The transport of this process. InvalidArgument for an unknown name."""
    name = os.environ.get("SPLITD_GRPC_TRANSPORT") or _chosen
    if name not in TRANSPORTS:
        raise errors.InvalidArgument(f"transport {name}: choose one of {', '.join(TRANSPORTS)}")
    return name


def carrier() -> Callable[[Path | str | Address, str, Pings], Carrier]:
    """A function that makes the transport's side of a channel, from an address, the peer's name, and when to ping
    it.
    """
    if transport() == "grpcio":
        from services.kit import grpcio

        return grpcio.GrpcioCarrier
    from services.wire.channel import WireCarrier

    return WireCarrier


def server(address: Path | str, methods: Methods, health: dict[str, int], *, relayed: bool) -> Server:
    """The transport's server at an address, before it listens. ``relayed`` is as in ``kit.rpc.serving``."""
    if transport() == "grpcio":
        from services.kit import grpcio

        return grpcio.GrpcioServer(address, methods, health)
    from services.wire.server import WireServer

    return WireServer(address, methods, health, relayed=relayed)
