#!/usr/bin/env bash
# etcd3 0.12.0 (PyPI), with etcd 3.4.23 of Debian 12.
# A good guess: `limit` limits, an empty prefix is every key, a prefix may be any bytes, and to refresh what is gone is an error.
# What it does: `limit` is taken and ignored; an empty prefix is an IndexError; a prefix that ends in 0xff is a ValueError; `refresh` of a lock whose lease is gone returns as if it were held.
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

client = etcd3.client(host="127.0.0.1", port=int(sys.argv[1]))
for name in "abc":
    client.put(f"p/{name}", "")
print("limit=1:", len(list(client.get_prefix("p/", limit=1))), "keys")
for prefix in (b"", b"p\xff"):
    try:
        print(prefix, len(list(client.get_prefix(prefix))))
    except (IndexError, ValueError) as error:
        print(prefix, type(error).__name__)
lock = client.lock("lock", ttl=5)
lock.acquire()
lock.lease.revoke()
print("refresh:", type(lock.refresh()).__name__ + ", held:", lock.is_acquired())
PYTHON
diff seen - <<'SEEN'
limit=1: 3 keys
b'' IndexError
b'p\xff' ValueError
refresh: list, held: False
SEEN
