#!/usr/bin/env bash
# etcd 3.4.23 of Debian 12, by etcd3 0.12.0.
# A good guess: a transaction has 128 operations at most, and names a key once.
# What it does: compares, success and failure may have 128 each; a key that is put twice, or put and deleted, is refused, one that is deleted twice is not.
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
of = client.transactions


def tried(name, compare=(), success=(), failure=()):
    try:
        client.transaction(compare=list(compare), success=list(success), failure=list(failure))
        print(name, "ok")
    except grpc.RpcError as error:
        print(name, error.details())


many = range(128)
tried("128 of each:", [of.version(f"{i}") == 0 for i in many], [of.put(f"{i}", "") for i in many], [of.put(f"{i}", "") for i in many])
tried("129 compares:", [of.version(f"{i}") == 0 for i in range(129)])
tried("put twice:", success=[of.put("k", "1"), of.put("k", "2")])
tried("put, delete:", success=[of.put("k", "1"), of.delete("k")])
tried("delete twice:", success=[of.delete("k"), of.delete("k")])
PYTHON
diff seen - <<'SEEN'
128 of each: ok
129 compares: etcdserver: too many operations in txn request
put twice: etcdserver: duplicate key given in txn request
put, delete: etcdserver: duplicate key given in txn request
delete twice: ok
SEEN
