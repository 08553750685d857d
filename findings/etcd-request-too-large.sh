#!/usr/bin/env bash
# etcd 3.4.23 of Debian 12, by etcd3 0.12.0.
# A good guess: a request that is too large has one error code.
# What it does: above 1.5 MiB etcd's own check answers INVALID_ARGUMENT; above 2 MiB its gRPC server answers RESOURCE_EXHAUSTED before etcd sees the request.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download etcd-server=3.4.23-4+b4 && dpkg -x etcd-server_*.deb .
python3 -m venv v && v/bin/pip -q install etcd3==0.12.0 protobuf==3.20.3 grpcio==1.85.3 tenacity==9.2.1 2>/dev/null
ports=$(python3 -c 'import socket; s = [socket.socket() for _ in "ab"]; [x.bind(("127.0.0.1", 0)) for x in s]; print(*(x.getsockname()[1] for x in s))')
read -r port peer <<<"$ports"
usr/bin/etcd --data-dir data --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$peer" \
  --initial-advertise-peer-urls "http://127.0.0.1:$peer" --initial-cluster "default=http://127.0.0.1:$peer" >log 2>&1 &
for _ in $(seq 100); do curl -s "http://127.0.0.1:$port/health" | grep -q true && break; sleep 0.1; done

v/bin/python - "$port" <<'PYTHON' | tee seen
import sys
import etcd3
import grpc

client = etcd3.client(host="127.0.0.1", port=int(sys.argv[1]))
for kib in (1500, 1600, 2049):
    try:
        client.put("large", b"x" * (kib << 10))
        print(kib, "KiB: ok")
    except grpc.RpcError as error:
        print(kib, "KiB:", error.code().name)
PYTHON
diff seen - <<'SEEN'
1500 KiB: ok
1600 KiB: INVALID_ARGUMENT
2049 KiB: RESOURCE_EXHAUSTED
SEEN
