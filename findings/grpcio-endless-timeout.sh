#!/usr/bin/env bash
# grpcio 1.85.3 (PyPI).
# A good guess: timeout=float("inf"), or one of 300 years, is as good as none; a handler asks time_remaining() and gets None where there is no deadline, as its documentation says;
# a status may be given by its number.
# What it does: a timeout above 2**63 nanoseconds (292 years) is over at once: DEADLINE_EXCEEDED. One of 100 years arrives as three (99999999 s, the eight digits that a gRPC header has).
# Without a timeout time_remaining() is 9e18 in a synchronous server. A code given as a number (5) becomes UNKNOWN.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install grpcio==1.85.3 2>/dev/null
v/bin/python - 2>/dev/null <<'PYTHON' | tee seen
from concurrent import futures
import asyncio

import grpc


def remaining(request, context):
    time = context.time_remaining()
    return b"None" if time is None else f"{time:.0e}".encode()


def numbered(request, context):
    context.set_code(5)
    return b""


class Handler(grpc.GenericRpcHandler):
    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(numbered if call.method == "/s/numbered" else remaining)


server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Handler()])
target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
server.start()
with grpc.insecure_channel(target) as channel:

    def call(method, **timeout):
        try:
            return channel.unary_unary(method)(b"", **timeout).decode()
        except grpc.RpcError as error:
            return error.code().name

    print("100 years:", call("/s/remaining", timeout=100 * 365 * 86400))
    print("300 years:", call("/s/remaining", timeout=300 * 365 * 86400))
    print("for ever:", call("/s/remaining", timeout=float("inf")))
    print("none:", call("/s/remaining"))
    print("code 5:", call("/s/numbered"))


async def aio():
    async with grpc.aio.insecure_channel(target) as channel:
        try:
            return await channel.unary_unary("/s/remaining")(b"", timeout=float("inf"))
        except grpc.RpcError as error:
            return error.code().name


print("aio, for ever:", asyncio.run(aio()))
PYTHON
diff seen - <<'SEEN'
100 years: 1e+08
300 years: DEADLINE_EXCEEDED
for ever: DEADLINE_EXCEEDED
none: 9e+18
code 5: UNKNOWN
aio, for ever: DEADLINE_EXCEEDED
SEEN
