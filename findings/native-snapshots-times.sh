#!/usr/bin/env bash
# containerd 1.6.20 of Debian 12 with its native snapshotter (root): a snapshot, and a child of it.
# A good guess: the child starts as a copy of its parent, with all that a tar would keep: owners, modes, times, links, attributes, holes.
# What it does: a directory that has anything in it has the time of the copy, as has the root; an empty one keeps its time, since the time is set before the content. Holes are filled:
# a file of 10 MB that took no room takes 10 MB in each snapshot on it.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount "$work"/edit 2>/dev/null || true; kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

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

mkdir edit
snapshots() { ctr snapshots --snapshotter native "$@"; }
snapshots prepare --target "$work/edit" one >mount; bash mount
mkdir -p edit/full edit/empty; echo content >edit/full/file; ln edit/full/file edit/full/link; truncate -s 10M edit/full/hole; chown 1000 edit/full/file; chmod 4755 edit/full/file
find edit -depth -exec touch -d 2001-02-03T04:05:06Z {} +
show() {
  for name in . empty full full/file full/hole; do
    echo "$1, $name: $(stat -c 'mode %a, owner %u, %b blocks' "edit/$name" | sed 's/ [1-9] blocks/ few blocks/; s/ 1[0-9] blocks/ few blocks/'), of $(date -u -r "edit/$name" +%Y | sed 's/^20[^0].$/now/')"
  done
}
{
  show parent
  umount edit
  snapshots commit base one
  snapshots prepare --target "$work/edit" two base >mount; bash mount
  show child
} | tee seen
diff seen - <<'SEEN'
parent, .: mode 755, owner 0, few blocks, of 2001
parent, empty: mode 755, owner 0, few blocks, of 2001
parent, full: mode 755, owner 0, few blocks, of 2001
parent, full/file: mode 4755, owner 1000, few blocks, of 2001
parent, full/hole: mode 644, owner 0, 0 blocks, of 2001
child, .: mode 755, owner 0, few blocks, of now
child, empty: mode 755, owner 0, few blocks, of 2001
child, full: mode 755, owner 0, few blocks, of now
child, full/file: mode 4755, owner 1000, few blocks, of 2001
child, full/hole: mode 644, owner 0, 20480 blocks, of 2001
SEEN
