#!/usr/bin/env bash
# grpcio 1.85.3, two servers on one unix socket.
# A good guess: the second is refused, "address in use", while the first lives.
# What it does: the second takes the path without an error, the first serves nobody new; and when the first stops it removes the second one's socket.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install grpcio==1.85.3 2>/dev/null
v/bin/python - <<'PYTHON' | tee seen
import os
from concurrent.futures import ThreadPoolExecutor

import grpc

ADDRESS = f"unix:{os.getcwd()}/s"


class Named(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name

    def service(self, _):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.name)


def served(name):
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Named(name)])
    print("bound:", bool(server.add_insecure_port(ADDRESS)))
    server.start()
    return server


def asked():
    with grpc.insecure_channel(ADDRESS) as channel:
        try:
            return channel.unary_unary("/a/B")(b"", timeout=5).decode()
        except grpc.RpcError as error:
            return error.code().name


first = served(b"first")
print("answers:", asked())
second = served(b"second")
print("answers:", asked())
first.stop(0).wait()
print("after the first one's stop:", asked(), "socket is there:", os.path.exists("s"))
second.stop(0).wait()
PYTHON
diff seen - <<'SEEN'
bound: True
answers: first
bound: True
answers: second
after the first one's stop: UNAVAILABLE socket is there: False
SEEN
