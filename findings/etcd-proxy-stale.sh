#!/usr/bin/env bash
# etcd 3.4.23 of Debian 12: `etcd grpc-proxy start` before one member. The key is changed at the member; then a serializable read through the proxy.
# A good guess: a serializable read may be old by as much as a member is behind the others, which with one member is nothing.
# What it does: the proxy answers from its cache, however old that is: the value from before the change, and a key that was removed. Only a linearizable read of the same key through
# the proxy brings its cache up to date. So the first read sees the present, and a later one that was allowed to be old sees the same forever.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 %2 2>/dev/null || true; wait; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download etcd-server=3.4.23-4+b4 etcd-client=3.4.23-4+b4 && for package in *.deb; do dpkg -x "$package" .; done
export ETCDCTL_API=3 PATH=$work/usr/bin:$PATH
read -r port peer proxy <<<"$(python3 -c 'import socket; s = [socket.socket() for _ in "abc"]; [x.bind(("127.0.0.1", 0)) for x in s]; print(*(x.getsockname()[1] for x in s))')"
etcd --data-dir data --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$peer" \
  --initial-advertise-peer-urls "http://127.0.0.1:$peer" --initial-cluster "default=http://127.0.0.1:$peer" >log 2>&1 &
etcd grpc-proxy start --endpoints "127.0.0.1:$port" --listen-addr "127.0.0.1:$proxy" >proxy.log 2>&1 &
member() { etcdctl --endpoints "127.0.0.1:$port" "$@" 2>/dev/null; }
for _ in $(seq 100); do etcdctl --endpoints "127.0.0.1:$proxy" get nothing >/dev/null 2>&1 && break; sleep 0.1; done
read_by() { echo "$1, $2: $(etcdctl --endpoints "127.0.0.1:${!3}" get key --print-value-only --consistency="$4")"; }
both() {
  read_by "$1" "serializable at the member" port s
  read_by "$1" "serializable by the proxy" proxy s
}
{
  member put key one >/dev/null; both "first value"
  member put key two >/dev/null; sleep 5; both "five seconds after the second"
  read_by "then" "linearizable by the proxy" proxy l
  both "after that read"
  member del key >/dev/null; sleep 5; both "five seconds after the removal"
  read_by "then" "linearizable by the proxy" proxy l
  both "after that read"
} | tee seen
diff seen - <<'SEEN'
first value, serializable at the member: one
first value, serializable by the proxy: one
five seconds after the second, serializable at the member: two
five seconds after the second, serializable by the proxy: one
then, linearizable by the proxy: two
after that read, serializable at the member: two
after that read, serializable by the proxy: two
five seconds after the removal, serializable at the member: 
five seconds after the removal, serializable by the proxy: two
then, linearizable by the proxy: 
after that read, serializable at the member: 
after that read, serializable by the proxy: 
SEEN
