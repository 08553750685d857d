#!/usr/bin/env bash
# etcd 3.4.23 of Debian 12, Watch by its JSON gateway: requests that cannot be fulfilled.
# A good guess: each gets one answer, `canceled` with a reason, whose header tells the revision.
# What it does: an empty range gets one answer, created and canceled at once, with the id -1. A start that is compacted away gets two: first `created`, then `canceled`, without a reason, and
# without a revision in the header. The cancellation of a watch that is not there gets no answer.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download etcd-server=3.4.23-4+b4 && dpkg -x etcd-server_*.deb .
read -r port peer <<<"$(python3 -c 'import socket; s = [socket.socket() for _ in "ab"]; [x.bind(("127.0.0.1", 0)) for x in s]; print(*(x.getsockname()[1] for x in s))')"
usr/bin/etcd --data-dir data --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$peer" \
  --initial-advertise-peer-urls "http://127.0.0.1:$peer" --initial-cluster "default=http://127.0.0.1:$peer" >log 2>&1 &
for _ in $(seq 100); do curl -s "http://127.0.0.1:$port/health" | grep -q true && break; sleep 0.1; done
call() { curl -sN -m 3 "http://127.0.0.1:$port/v3/$1" -d "$2" || true; }
for _ in 1 2 3; do call kv/put '{"key": "aw==", "value": "dg=="}' >/dev/null; done
call kv/compaction '{"revision": 3}' >/dev/null
{
  for request in '{"create_request": {"key": "eg==", "range_end": "YQ=="}}' '{"create_request": {"key": "aw==", "start_revision": 2}}' '{"cancel_request": {"watch_id": 5}}' '{"create_request": {"key": "aw==", "start_revision": 1000}}'; do
    echo "$request"
    call watch "$request" | python3 -c '
import json, sys
for line in sys.stdin:
    result = json.loads(line)["result"]
    print("  revision", result.pop("header").get("revision"), result)'
  done
} | tee seen
diff seen - <<'SEEN'
{"create_request": {"key": "eg==", "range_end": "YQ=="}}
  revision 4 {'watch_id': '-1', 'created': True, 'canceled': True, 'cancel_reason': 'mvcc: watcher range is empty'}
{"create_request": {"key": "aw==", "start_revision": 2}}
  revision 4 {'created': True}
  revision None {'canceled': True, 'compact_revision': '3'}
{"cancel_request": {"watch_id": 5}}
{"create_request": {"key": "aw==", "start_revision": 1000}}
  revision 4 {'created': True}
SEEN
