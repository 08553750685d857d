#!/usr/bin/env bash
# btrfs-progs 6.2 (Debian 12) on a kernel with btrfs (seen with 6.18): `btrfs send` of a snapshot of a container's files, and `btrfs receive` in another file system. It needs root.
# A good guess: what comes out is what went in: attributes (chattr), room that was reserved, directories, since send sends the file system's own trees.
# What it does: attributes are lost without a word, with protocol 2 as with 1: no copy on write (C), immutable (i), append only (a), no dump (d); a compression property stays.
# Reserved room is a hole. Where a nested subvolume was, the snapshot has an empty directory, and the received one nothing.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'chattr -ia from/volume/* 2>/dev/null || true; umount from to 2>/dev/null || true; rm -rf "$work"' EXIT

grep -qw btrfs /proc/filesystems || { echo "this kernel has no btrfs"; exit 1; }
apt-get -qq -o APT::Sandbox::User=root download btrfs-progs=6.2-1+deb12u2 && dpkg -x btrfs-progs_*.deb .
PATH=$work/bin:$work/sbin:$work/usr/bin:$work/usr/sbin:$PATH
for side in from to; do truncate -s 300M $side.image; mkfs.btrfs -q $side.image >/dev/null; mkdir $side; mount -o loop $side.image $side; done
btrfs -q subvolume create from/volume
btrfs -q subvolume create from/volume/nested
cd from/volume
touch no-cow immutable append-only no-dump compressed
chattr +C no-cow
btrfs property set compressed compression zstd
for name in no-cow immutable append-only no-dump compressed; do echo content >$name; done
chattr +i immutable; chattr +a append-only; chattr +d no-dump
fallocate -l 1M reserved
cd "$work"
btrfs -q subvolume snapshot -r from/volume from/snapshot
for protocol in 1 2; do
  btrfs -q send --proto $protocol from/snapshot >stream 2>/dev/null
  mkdir to/$protocol
  btrfs -q receive to/$protocol <stream
done
for folder in from to/1 to/2; do
  (cd $folder/snapshot && lsattr | awk -v f=$folder '{ gsub(/-/, "", $1); sub("./", "", $2); print f ": " $2, "[" $1 "]" }') 2>/dev/null
  echo "$folder: $(stat -c 'reserved has %b blocks of %B' $folder/snapshot/reserved), compression $(btrfs property get $folder/snapshot/compressed compression), nested $(test -d $folder/snapshot/nested && echo 'is there' || echo 'is not there')"
done | tee seen
diff seen - <<'SEEN'
from: no-cow [C]
from: immutable [i]
from: append-only [a]
from: no-dump [d]
from: compressed [c]
from: reserved []
from: reserved has 2048 blocks of 512, compression compression=zstd, nested is there
to/1: no-cow []
to/1: immutable []
to/1: append-only []
to/1: no-dump []
to/1: compressed [c]
to/1: reserved []
to/1: reserved has 0 blocks of 512, compression compression=zstd, nested is not there
to/2: no-cow []
to/2: immutable []
to/2: append-only []
to/2: no-dump []
to/2: compressed [c]
to/2: reserved []
to/2: reserved has 0 blocks of 512, compression compression=zstd, nested is not there
SEEN
