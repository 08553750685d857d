"""The registry client of one transfer: its hosts, its headers, and its caller's credentials."""

from __future__ import annotations

from pathlib import Path

from services.images import transfer
from services.images.registry.client import Client, Registry
from services.images.registry.credentials import Credentials
from services.images.registry.hosts import Hosts
from services.images.registry.http_debug import HttpDebug


def client_of(process: Registry, end: transfer.Registry) -> Client:
    """A client for one transfer. It has only the request's credentials: as in containerd, the node's own (docker's, the
    CRI plugin's) are not for every client that may call Transfer.
    """
    ask = end.credentials

    async def source(host: str) -> Credentials | None:
        assert ask is not None
        given = await ask(host, ())
        return Credentials(given.username, given.secret, given.header)

    return process.client(
        source if ask is not None else None,
        headers=end.headers,
        hosts=Hosts((Path(end.host_dir),), traceparent=process.hosts.traceparent) if end.host_dir else None,
        default_scheme=end.default_scheme,
        watch=HttpDebug(end.show_requests, end.show_connections),
    )
