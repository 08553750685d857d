"""The comparing process of one shadow. The gateway starts it for as long as the shadow lasts, with the socket of copies
as its standard input.

It runs at the lowest priority. Where the node needs all processors, it falls behind, and the gateway drops copies.
"""

from __future__ import annotations

import os
import socket

from services.kit import logs, process, rpc, stacks
from services.shadows.server import serve

if __name__ == "__main__":
    stacks.register()
    logs.configure()
    os.nice(19)
    rpc.load()
    process.run_loop(serve(socket.socket(fileno=0)))
