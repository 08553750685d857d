#!/usr/bin/env bash
# etcd 3.4.23 of Debian 12, by its JSON gateway: a transaction within a transaction.
# A good guess: the operations run in order, so what the inner transaction compares is what the outer one has just written, as a range at the same place reads it.
# What it does: all compares, of the inner transactions too, are made before the first operation. The inner one takes the branch for the old value; a range in that branch reads
# the new one.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download etcd-server=3.4.23-4+b4 && dpkg -x etcd-server_*.deb .
ports=$(python3 -c 'import socket; s = [socket.socket() for _ in "ab"]; [x.bind(("127.0.0.1", 0)) for x in s]; print(*(x.getsockname()[1] for x in s))')
read -r port peer <<<"$ports"
usr/bin/etcd --data-dir data --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$peer" \
  --initial-advertise-peer-urls "http://127.0.0.1:$peer" --initial-cluster "default=http://127.0.0.1:$peer" >log 2>&1 &
for _ in $(seq 100); do curl -s "http://127.0.0.1:$port/health" | grep -q true && break; sleep 0.1; done

python3 - "$port" <<'PYTHON' | tee seen
import base64
import json
import sys
import urllib.request


def call(method, fields):
    request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/v3/kv/{method}", json.dumps(fields).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


key, old, new = (base64.b64encode(each).decode() for each in (b"key", b"old", b"new"))
read = {"request_range": {"key": key}}
call("put", {"key": key, "value": old})
inner = {"compare": [{"key": key, "target": "VALUE", "value": new}], "success": [read], "failure": [read]}
outer = call("txn", {"success": [{"request_put": {"key": key, "value": new}}, read, {"request_txn": inner}]})
put, between, nested = outer["responses"]
value = lambda answer: base64.b64decode(answer["response_range"]["kvs"][0]["value"]).decode()
print("a range after the put:", value(between))
print("the inner compare with the new value:", nested["response_txn"].get("succeeded", False))
print("a range in its failure branch:", value(nested["response_txn"]["responses"][0]))
PYTHON
diff seen - <<'SEEN'
a range after the put: new
the inner compare with the new value: False
a range in its failure branch: new
SEEN
