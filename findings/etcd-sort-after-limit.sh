#!/usr/bin/env bash
# etcd 3.4.23 of Debian 12, by its JSON gateway.
# A good guess: a range with a sort target and a limit gives the smallest of all, with or without an order (whose default is ascending); `count` counts what the filter lets through.
# What it does: without an order etcd takes the first limit+1 keys, sorts those by the target, and gives the limit's number of them: the smallest of two, where the limit is 1.
# `count` is the number of keys in the range, although min_mod_revision lets only one of them through.
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


def call(method, **fields):
    request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/v3/kv/{method}", json.dumps(fields).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def text(value):
    return base64.b64encode(value.encode()).decode()


def values(**fields):
    answer = call("range", key=text("k"), range_end=text("l"), **fields)
    return *(base64.b64decode(kv["value"]).decode() for kv in answer["kvs"]), "of", answer["count"]


for number, value in enumerate("edcba"):
    revision = call("put", key=text(f"k{number}"), value=text(value))["header"]["revision"]
print("no limit:", *values(sort_target="VALUE"))
for limit in (1, 2, 3):
    print(f"limit {limit}:", *values(sort_target="VALUE", limit=limit))
print("limit 1, ascending:", *values(sort_target="VALUE", sort_order="ASCEND", limit=1))
print("of the last revision:", *values(min_mod_revision=revision))
PYTHON
diff seen - <<'SEEN'
no limit: a b c d e of 5
limit 1: d of 5
limit 2: c d of 5
limit 3: b c d of 5
limit 1, ascending: a of 5
of the last revision: a of 5
SEEN
