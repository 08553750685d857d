#!/usr/bin/env bash
# grpcio 1.85.3 (PyPI): one handler in a server of grpc.server and in one of grpc.aio.server, and one call by both clients.
# A good guess: a handler that moves from one to the other answers as before; time_remaining() is None without a deadline, as documented; a client's errors are RpcErrors.
# What it does: without a deadline the first server says 9.2e18 seconds, the second None. A handler that returns None: INTERNAL from the first, OK with an empty message from the second.
# set_code(5): UNKNOWN, and NOT_FOUND. Metadata with a capital in its key: an RpcError with INTERNAL, and an ExecuteBatchError, which is no RpcError.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install grpcio==1.85.3 2>/dev/null
cat >both.py <<'PYTHON'
import asyncio
from concurrent import futures

import grpc


def answer(request, context):
    left = context.time_remaining()
    if request == b"time":
        return (b"None" if left is None else b"%.1e" % left)
    if request == b"code":
        context.set_code(5)
        context.set_details("not there")
    return None if request == b"nothing" else request


async def answer_aio(request, context):
    return answer(request, context)


class Handler(grpc.GenericRpcHandler):
    def __init__(self, function):
        self.function = function

    def service(self, _):
        return grpc.unary_unary_rpc_method_handler(self.function)


calls = {"time": (), "code": (), "nothing": (), "metadata": (("Key", "value"),)}


def said(error):
    kind = "an RpcError" if isinstance(error, grpc.RpcError) else "no RpcError"
    return f"{kind}, {error.code().name}, {error.details()!r}" if kind == "an RpcError" else f"{kind}, {type(error).__name__}"


server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((Handler(answer),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    for name, metadata in calls.items():
        try:
            print(f"grpc, {name}:", channel.unary_unary("/service/method")(name.encode(), metadata=metadata))
        except Exception as error:
            print(f"grpc, {name}:", said(error))
server.stop(None).wait()


async def aio():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(answer_aio),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name, metadata in calls.items():
            try:
                print(f"grpc.aio, {name}:", await channel.unary_unary("/service/method")(name.encode(), metadata=metadata))
            except Exception as error:
                print(f"grpc.aio, {name}:", said(error))
    await server.stop(None)


asyncio.run(aio())
PYTHON
v/bin/python both.py 2>/dev/null | tee seen
diff seen - <<'SEEN'
grpc, time: b'9.2e+18'
grpc, code: an RpcError, UNKNOWN, 'not there'
grpc, nothing: an RpcError, INTERNAL, 'Failed to serialize response!'
grpc, metadata: an RpcError, INTERNAL, 'Invalid metadata'
grpc.aio, time: b'None'
grpc.aio, code: an RpcError, NOT_FOUND, 'not there'
grpc.aio, nothing: b''
grpc.aio, metadata: no RpcError, ExecuteBatchError
SEEN
