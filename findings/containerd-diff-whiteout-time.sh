#!/usr/bin/env bash
# containerd 1.6.20 of Debian 12 with its native snapshotter: Diff of the same two snapshots, twice, by its ctr. It needs root (mounts, all below the folder).
# A good guess: nothing has changed between the two, so the layers have one digest. That is so where files are added.
# What it does: where a file is removed the whiteout in the layer has the time at which the diff was made; so each Diff makes another layer of the same bytes.
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
CONF
usr/bin/containerd -c conf >log 2>&1 &
ctr() { usr/bin/ctr -a s "$@"; }
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done

edited() { # edited KEY PARENT: a snapshot on PARENT, at ./KEY
  mkdir "$1"
  ctr snapshots --snapshotter native prepare --target "$work/$1" "$1" ${2:+"$2"} >mount
  bash mount
}
committed() { # committed NAME KEY
  umount "$work/$2"
  ctr snapshots --snapshotter native commit "$1" "$2"
}
edited lower; echo hello >lower/file; committed base lower
edited more base; echo more >more/another; committed added more
edited less base; rm less/file; committed removed less

twice() { # twice NAME WORDS: are both layers the same?
  ctr snapshots --snapshotter native diff base "$1" >first
  sleep 2
  ctr snapshots --snapshotter native diff base "$1" >second
  if cmp -s first second; then echo "$2: one digest"; else echo "$2: two digests"; fi
}
{
  twice added "a file added"
  twice removed "a file removed"
} | tee seen
diff seen - <<'SEEN'
a file added: one digest
a file removed: two digests
SEEN
