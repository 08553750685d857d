#!/usr/bin/env bash
# grpclib 0.4.9 (PyPI) as the server, grpcio 1.85.3 as the client, which compresses its messages.
# A good guess: the server reads them, or answers UNIMPLEMENTED and says in grpc-accept-encoding what it reads, as gRPC's specification of compression has it.
# What it does: it answers UNKNOWN, "Internal Server Error", and names no encoding, so that a client cannot tell it from a fault of the handler. A message without compression is answered.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install grpclib==0.4.9 grpcio==1.85.3 2>/dev/null
cat >meet.py <<'PYTHON'
import asyncio

import grpc
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server


class Bytes(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message, message_type):
        return message

    def decode(self, data, message_type):
        return bytes(data)


class Service:
    async def echo(self, stream):
        await stream.send_message(await stream.recv_message())

    def __mapping__(self):
        return {"/service/echo": Handler(self.echo, Cardinality.UNARY_UNARY, bytes, bytes)}


async def main():
    server = Server([Service()], codec=Bytes())
    await server.start("127.0.0.1", 0)
    port = server._server.sockets[0].getsockname()[1]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for compression in grpc.Compression.NoCompression, grpc.Compression.Deflate, grpc.Compression.Gzip:
            call = channel.unary_unary("/service/echo")(b"x" * 1000, compression=compression, timeout=30)
            try:
                print(f"{compression.name}: {len(await call)} bytes")
            except grpc.RpcError as error:
                print(f"{compression.name}: {error.code().name}, {error.details()!r}, metadata {list(await call.initial_metadata())}")
    server.close()
    await server.wait_closed()


asyncio.run(main())
PYTHON
v/bin/python meet.py 2>/dev/null | tee seen
diff seen - <<'SEEN'
NoCompression: 1000 bytes
Deflate: UNKNOWN, 'Internal Server Error', metadata []
Gzip: UNKNOWN, 'Internal Server Error', metadata []
SEEN
