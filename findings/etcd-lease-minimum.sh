#!/usr/bin/env bash
# etcd 3.4.23 of Debian 12, by etcd3 0.12.0.
# A good guess: a lease lives as long as was asked for, and a key keeps its lease until it is given another.
# What it does: with its default timings etcd grants 2 s to whoever asks for 1; a put that names no lease takes the key out of its lease, whose end no longer removes it.
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
print("asked for 1 s, granted", client.lease(1).ttl)
lease = client.lease(600)
client.put("key", "1", lease=lease)
client.put("key", "2")
lease.revoke()
print("after its lease's end:", client.get("key")[0])
PYTHON
diff seen - <<'SEEN'
asked for 1 s, granted 2
after its lease's end: b'2'
SEEN
