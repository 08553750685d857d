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
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from services.content.server import ContentServicer
from services.kit import errors, exporting, process, rpc
from services.kit.addresses import Address
from services.kit.certificates import Certificates
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
        help="where it serves: the path of a unix socket (mode 0600), or HOST:PORT; without --ca every client that "
        "reaches a port may use it",
    )
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="STATE of a node, whose traces get this service's spans"
    )
    parser.add_argument("--cert", default="", metavar="FILE", help="certificate (PEM): HOST:PORT then speaks TLS")
    parser.add_argument("--key", default="", metavar="FILE", help="its key (PEM; default: it is in the same file)")
    parser.add_argument(
        "--ca", default="", metavar="FILE", help="authorities (PEM): clients need a certificate of theirs"
    )
    found = parser.parse_args(arguments)
    serve(
        make,
        root=found.root,
        address=found.address,
        name=name,
        state=found.state,
        cert=_absolute(found.cert),
        key=_absolute(found.key),
        ca=_absolute(found.ca),
    )


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if path else ""


def serve(
    make: Callable[[Path], Service],
    *,
    root: Path,
    address: str,
    name: str,
    state: Path | None = None,
    grace: float = GRACE,
    cert: str = "",
    key: str = "",
    ca: str = "",
) -> None:
    """Serve until SIGTERM or SIGINT what ``make`` makes of ``root``. Whatever keeps it from running is said in one line
    of the log, and the process exits with 1.

    ``root`` is made, if necessary, and locked: while another process serves it, this one waits 10 s for its end.
    ``state`` is the state directory of a node that gets the spans of this process; a collector that the environment
    names gets them besides. ``grace``: seconds in which calls may end after the signal. ``cert``, ``key`` and ``ca``
    are absolute paths of files in PEM form, for TLS at HOST:PORT; with ``ca`` clients need a certificate that one of
    its authorities has signed. The files are read again when they change, for the next connection.
    """
    with process.alone(name):
        exporting.begin(name, Tracing(), state)
        process.tune()
        with process.owned(root):
            given = Address(address=address, cert=cert, key=key, ca=ca)
            if given.secure and not cert:
                raise errors.InvalidArgument("ca: TLS needs a certificate of this service, cert")
            where = _place(given)
            tls = Certificates(given).serving() if given.secure else None
            made = make(root)
            process.run_loop(process.watched(_serve(made, root, where, grace, tls)))


async def _serve(made: Service, root: Path, where: Path | str, grace: float, tls: ssl.SSLContext | None) -> None:
    servicer: rpc.Servicer
    adapted: AdaptedSnapshotter | AdaptedStore
    if isinstance(made, Snapshotter):
        adapted = AdaptedSnapshotter(made)
        servicer = SnapshotsServicer(adapted)
    elif isinstance(made, Store):
        adapted = AdaptedStore(made)
        servicer = ContentServicer(adapted)
    else:
        raise TypeError(f"{made!r} is neither a splitd.snapshots.Snapshotter nor a splitd.content.Store")
    try:
        async with rpc.serving(where, [servicer, StampServicer(root)], grace=grace, relayed=True, tls=tls):
            await process.until_signal()
    finally:
        await adapted.close()


def _place(given: Address) -> Path | str:
    """Where to listen: a path, or HOST:PORT. FailedPrecondition if another process serves at the path."""
    if not given.path:
        return f"{given.host}:{given.port}"
    path = Path(given.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(given.path)
        except (FileNotFoundError, ConnectionRefusedError):
            return path
    raise errors.FailedPrecondition(f"{path} is served by another process")
