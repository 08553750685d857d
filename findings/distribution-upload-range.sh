#!/usr/bin/env bash
# distribution (docker-registry), 2.8.2 of Debian 12.
# A good guess: the Range of an upload tells where to go on.
# What it does: an upload that has nothing and one that has a byte both say `Range: 0-0`, so whoever goes on at the byte after writes one too late or too early.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download docker-registry=2.8.2+ds1-1 && dpkg -x docker-registry_*.deb .
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: "127.0.0.1:%s"}\nlog: {level: error}\n' "$work" "$port" >config.yml
usr/bin/docker-registry serve config.yml >log 2>&1 &
base=http://127.0.0.1:$port
for _ in $(seq 100); do curl -so /dev/null $base/v2/ && break; sleep 0.1; done

header() { tr -d '\r' | sed -n "s/^$1: //p"; }
location=$(curl -si -X POST $base/v2/a/blobs/uploads/ | header Location)
{
  echo "nothing: $(curl -si "$location" | header Range)"
  location=$(curl -si -X PATCH -H 'Content-Type: application/octet-stream' --data-binary h "$location" | header Location)
  echo "one byte: $(curl -si "$location" | header Range)"
  location=$(curl -si -X PATCH -H 'Content-Type: application/octet-stream' --data-binary e "$location" | header Location)
  echo "two bytes: $(curl -si "$location" | header Range)"
} | tee seen
diff seen - <<'SEEN'
nothing: 0-0
one byte: 0-0
two bytes: 0-1
SEEN
