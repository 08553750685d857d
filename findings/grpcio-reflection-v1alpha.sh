#!/usr/bin/env bash
# grpcio-reflection and grpcio-health-checking 1.85.1 with grpcio 1.85.3 (PyPI).
# A good guess: a server of 2026 answers grpc.reflection.v1, which replaced v1alpha in 2023, or both; health has List, which is in its messages; a status that does not exist is refused.
# What it does: reflection is v1alpha alone, so a client that asks only for v1 is told UNIMPLEMENTED. So is one that calls List. The servicer takes 77 for a status, and answers with it.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install grpcio==1.85.3 grpcio-health-checking==1.85.1 grpcio-reflection==1.85.1 2>/dev/null
v/bin/python - 2>/dev/null <<'PYTHON' | tee seen
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

server = grpc.server(futures.ThreadPoolExecutor(2))
servicer = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
reflection.enable_server_reflection([reflection.SERVICE_NAME, health.SERVICE_NAME], server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
servicer.set("service", 77)


def said(call):
    try:
        return call()
    except grpc.RpcError as error:
        return error.code().name


with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    stub = health_pb2_grpc.HealthStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    for version in "v1alpha", "v1":
        method = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
        print(f"reflection {version}:", said(lambda: "answers" if next(method(iter([request]), timeout=30)) else "nothing"))
    print("health, List:", said(lambda: stub.List(health_pb2.HealthListRequest(), timeout=30)))
    print("health, a status of 77:", said(lambda: stub.Check(health_pb2.HealthCheckRequest(service="service"), timeout=30).status))
server.stop(None).wait()
PYTHON
diff seen - <<'SEEN'
reflection v1alpha: answers
reflection v1: UNIMPLEMENTED
health, List: UNIMPLEMENTED
health, a status of 77: 77
SEEN
