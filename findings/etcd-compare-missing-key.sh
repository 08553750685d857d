#!/usr/bin/env bash
# etcd 3.4.23 of Debian 12, by etcd3 0.12.0.
# A good guess: every `!=` holds for a key that is not there, or none does.
# What it does: a compare of its value is always false, `!=` too; its mod revision, create revision and version count as 0, so `mod != 5` is true.
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
of = client.transactions
for name, compare in {"value != x": of.value("none") != "x", "value == (empty)": of.value("none") == "", "mod != 5": of.mod("none") != 5, "version == 0": of.version("none") == 0}.items():
    print(name, client.transaction(compare=[compare], success=[], failure=[])[0])
PYTHON
diff seen - <<'SEEN'
value != x False
value == (empty) False
mod != 5 True
version == 0 True
SEEN
