"""The fleet process: it tells the other nodes what this one has, by the fleet's etcd, and gives them blobs. The node's
own processes ask it on STATE/fleet.sock.

The node needs it for nothing: while it is away, pulls go to the registry. It runs where [fleet.etcd] has endpoints.
"""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from services.content.remote import RemoteFiles
from services.etcd.client import connect
from services.fleet.config import Config
from services.fleet.door import Door
from services.fleet.local import FleetNode
from services.fleet.peer_server import PeerServer
from services.fleet.pulls_remote import Pulls
from services.fleet.records_remote import Records
from services.fleet.server import FleetServicer
from services.fleet.shared_remote import SharedBlobs
from services.fleet.store import Standing
from services.fleet.transfers_remote import Puller
from services.fleet.upload_limit import UploadLimit
from services.fleet.wanted import Wanted
from services.kit import errors, loops, process, rpc, settings, version

log = logging.getLogger(__name__)


def identity(file: Path) -> str:
    """What tells this node from another of its name, in this boot; made if it is not there."""
    try:
        known = file.read_text()[:32]
    except OSError:
        known = ""
    if len(known) < 32:
        known = secrets.token_hex(16)
        try:
            file.write_text(known)
        except OSError as error:  # a killed process then leaves the name only to the end of its lease
            log.warning("%s: %s", file, error.strerror)
    return known


def free(root: Path) -> int:
    """The bytes that are free on the disk of the node's blobs."""
    try:
        found = os.statvfs(root)
    except OSError as error:
        raise errors.of_system(error, str(root)) from None
    return found.f_bavail * found.f_frsize


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal."""
    config = settings.load(Config, file, "fleet")
    if not config.etcd.endpoints:
        raise errors.FailedPrecondition(f"config file {file.path}: [fleet.etcd] endpoints is missing")
    with process.owned(node.state / "fleet") as directory:
        async with AsyncExitStack() as stack:
            etcd = connect(config.etcd)
            stack.push_async_callback(etcd.close)
            gateway = await stack.enter_async_context(rpc.Channel(node.state / "internal.sock", "gateway"))
            fleet = FleetNode(
                etcd,
                config.etcd.prefix,
                config.node,
                "",
                config.namespaces,
                version.VERSION,
                identity(directory / "id"),
            )
            files = {name: RemoteFiles(gateway, {rpc.NAMESPACE: name}) for name in config.namespaces}
            traces = await stack.enter_async_context(rpc.Channel(node.state / "traces.sock", "traces"))
            pulls = Pulls(traces, config.namespaces)
            peers = PeerServer(files, fleet.arriving, UploadLimit(config.upload), pulls=pulls.document)
            door = Door(config, peers, fleet.serve)
            blobs = SharedBlobs(gateway, files, fleet)

            def standing() -> Standing:
                found = fleet.standing()
                troubles = (*found.troubles, door.trouble if config.advertised else "", blobs.trouble)
                return replace(found, troubles=tuple(filter(None, troubles)), sent=peers.sent)

            await stack.enter_async_context(rpc.serving(node.state / "fleet.sock", [FleetServicer(fleet, standing)]))
            await stack.enter_async_context(loops.running("the fleet", fleet.keep))
            await stack.enter_async_context(loops.running("the blobs of the fleet", blobs.follow))
            records = Records(gateway, fleet)
            await stack.enter_async_context(loops.running("the images and containers of the fleet", records.keep))
            # as a client's, so that they are operations with a trace
            client = await stack.enter_async_context(rpc.Channel(node.state / "containerd.sock", "gateway"))
            wanted = Wanted(fleet, Puller(client).pull, lambda: free(node.root))
            await stack.enter_async_context(loops.running("the wanted pulls of the fleet", wanted.keep))
            if config.advertised:
                await stack.enter_async_context(loops.running("the server of peers", door.serve))
            await process.until_signal()


if __name__ == "__main__":
    process.run("fleet", serve)
