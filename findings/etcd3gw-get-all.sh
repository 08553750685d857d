#!/usr/bin/env bash
# etcd3gw 2.4.2 (PyPI), with etcd 3.4.23 of Debian 12.
# A good guess: get_all() yields every key, as its documentation says.
# What it does: it encodes its first key twice, so the range starts at the four bytes "AA==" and not at 0. Keys that sort before that are missing: those that start with `/`, as
# most do, and with digits. An event of a watch has no "type" if the key was put; only for a deletion it has one.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download etcd-server=3.4.23-4+b4 && dpkg -x etcd-server_*.deb .
python3 -m venv v && v/bin/pip -q install etcd3gw==2.4.2 requests==2.32.3 futurist==3.0.0 2>/dev/null
ports=$(python3 -c 'import socket; s = [socket.socket() for _ in "ab"]; [x.bind(("127.0.0.1", 0)) for x in s]; print(*(x.getsockname()[1] for x in s))')
read -r port peer <<<"$ports"
usr/bin/etcd --data-dir data --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$peer" \
  --initial-advertise-peer-urls "http://127.0.0.1:$peer" --initial-cluster "default=http://127.0.0.1:$peer" >log 2>&1 &
for _ in $(seq 100); do curl -s "http://127.0.0.1:$port/health" | grep -q true && break; sleep 0.1; done

v/bin/python - "$port" <<'PYTHON' | tee seen
import sys
import etcd3gw

client = etcd3gw.client(host="127.0.0.1", port=int(sys.argv[1]))
keys = ["/registry/pods", "0", "A", "Z", "a", "~"]
for key in keys:
    client.put(key, "value")
print("put:", *keys)
print("get_all:", *(item["key"].decode() for _, item in client.get_all()))
print("get_prefix of /:", *(item["key"].decode() for _, item in client.get_prefix("/")))
PYTHON
diff seen - <<'SEEN'
put: /registry/pods 0 A Z a ~
get_all: Z a ~
get_prefix of /: /registry/pods
SEEN
