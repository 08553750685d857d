"""A service process around a class of one's own. The whole program is often::

    if __name__ == "__main__":
        service.main(MySnapshotter)

and its command line ``PROGRAM --root DIR --address ADDRESS``. It serves containerd's API at the address, over the class
that was made with the directory. It keeps others out of that directory, answers gRPC health checks, and logs on
standard error (SPLITD_LOG is the level). It sends traces to the collector of the variables OTEL_..., and with ``--state
STATE`` to the node that is at STATE. On SIGTERM it takes no more calls, and finishes those that it has.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from services.content.server import ContentServicer
from services.kit import errors, exporting, process, rpc
from services.kit.config import Tracing
from services.kit.stamp import StampServicer
from services.snapshots.server import SnapshotsServicer
from splitd._adapters import AdaptedSnapshotter, AdaptedStore
from splitd.content import Store
from splitd.snapshots import Snapshotter

__all__ = ["main", "serve"]

Service: TypeAlias = Snapshotter | Store

GRACE = 5.0
"""Seconds in which calls may end after SIGTERM."""


def main(make: Callable[[Path], Service], *, name: str = "", arguments: Sequence[str] | None = None) -> None:
    """The main function of a service's program: read the command line, then :func:`serve` what ``make`` makes of the
    root directory. ``name`` is what logs and traces call it; by default, the program's.
    """
    name = name or Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=name, allow_abbrev=False)
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="directory of its files; made if absent"
    )
    parser.add_argument(
        "--address",
        required=True,
        help="where it serves: the path of a unix socket (mode 0600), or HOST:PORT, which every client that reaches it "
        "may use",
    )
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="STATE of a node, whose traces get this service's spans"
    )
    found = parser.parse_args(arguments)
    serve(make, root=found.root, address=found.address, name=name, state=found.state)


def serve(
    make: Callable[[Path], Service],
    *,
    root: Path,
    address: str,
    name: str,
    state: Path | None = None,
    grace: float = GRACE,
) -> None:
    """Serve until SIGTERM or SIGINT what ``make`` makes of ``root``. Whatever keeps it from running is said in one line
    of the log, and the process exits with 1.

    ``root`` is made, if necessary, and locked: while another process serves it, this one waits 10 s for its end.
    ``state`` is the state directory of a node that gets the spans of this process; a collector that the environment
    names gets them besides. ``grace``: seconds in which calls may end after the signal.
    """
    with process.alone(name):
        exporting.begin(name, Tracing(), state)
        process.tune()
        with process.owned(root):
            where = _place(address)
            made = make(root)
            process.run_loop(process.watched(_serve(made, root, where, grace)))


async def _serve(made: Service, root: Path, where: Path | str, grace: float) -> None:
    servicer: rpc.Servicer
    adapted: AdaptedSnapshotter | AdaptedStore
    if isinstance(made, Snapshotter):
        adapted = AdaptedSnapshotter(made)
        servicer = SnapshotsServicer(adapted)
    else:
        adapted = AdaptedStore(made)
        servicer = ContentServicer(adapted)
    try:
        async with rpc.serving(where, [servicer, StampServicer(root)], grace=grace, relayed=True):
            await process.until_signal()
    finally:
        await adapted.close()


def _place(address: str) -> Path | str:
    """Where to listen: a path, or HOST:PORT. InvalidArgument if it is neither; FailedPrecondition if another process
    serves there.
    """
    path = address.removeprefix("unix://").removeprefix("unix:")
    if path.startswith("/"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                return Path(path)
        raise errors.FailedPrecondition(f"{path} is served by another process")
    host, colon, port = address.removeprefix("tcp://").rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal():
        raise errors.InvalidArgument(f"address {address!r} is neither the absolute path of a unix socket nor HOST:PORT")
    return f"{host}:{port}"
