#!/usr/bin/env bash
# containerd 1.6.20 of Debian 12, by its ctr.
# A good guess: what `ctr content ingest` wrote stays, as what the other commands write does; a filter by size finds the blobs of that size, or is refused.
# What it does: ctr takes no lease for the ingest, and nothing refers to the blob, so the next garbage collection removes it. The field `size` is taken and never has a value:
# `size==6` finds nothing, and `size!=6` finds blobs of six bytes.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download containerd=1.6.20~ds1-1+deb12u3 && dpkg -x containerd_*.deb .
cat >conf <<CONF
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$work/s"
[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "1h"
CONF
usr/bin/containerd -c conf >log 2>&1 &
ctr() { usr/bin/ctr -a s "$@"; }
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done

blobs() { ctr content ls -q "$@" | wc -l; }
{
  echo hello | ctr content ingest reference
  echo "ingested: $(blobs)"
  echo "size==6: $(blobs size==6)"
  echo "size!=6: $(blobs size!=6)"
  ctr leases create --id any >/dev/null
  ctr leases delete --sync any >/dev/null
  echo "after a collection: $(blobs)"
} | tee seen
diff seen - <<'SEEN'
ingested: 1
size==6: 0
size!=6: 1
after a collection: 0
SEEN
