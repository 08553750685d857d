#!/usr/bin/env bash
# btrfs-progs 6.2 of Debian 12: mkfs.btrfs --rootdir makes a file system of a directory; it is mounted, as root.
# A good guess: the files are as they were.
# What it does: each device becomes device 0:0, which is what overlayfs takes for a whiteout, so what has the name in a layer below
# disappears. Times lose their nanoseconds, a hole takes all of its bytes, and an inode's
# number is the one that it had on the other disk, plus 256.
# Hard links and set-uid bits are kept. And -q is not quiet.
set -euo pipefail; export TZ=UTC
work=$(mktemp -d); cd "$work"
trap 'umount -q over top || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download btrfs-progs=6.2-1+deb12u2
for package in *.deb; do dpkg -x "$package" .; done

mkdir from top below over; echo content >from/file; chmod 4755 from/file; ln from/file from/link
mknod from/null c 1 3; truncate -s 20M from/hole; touch -d '2020-01-01 00:00:00.5' from/time
echo below >below/null
truncate -s 200M image
sbin/mkfs.btrfs -q --rootdir from image >said
mount -o loop,ro image top
mount -t overlay -o lowerdir=top:below overlay over
{
  echo "it says: $(head -c 40 said)"
  for at in from top; do echo "$at: file $(stat -c '%a, links %h' $at/file), null $(stat -c '%t:%T' $at/null), time $(stat -c %y $at/time | cut -c12-21), hole $(($(stat -c '%b * %B' $at/hole) / 1048576)) MB"; done
  echo "number of the inode: $(($(stat -c %i top/file) - $(stat -c %i from/file))) more"
  echo "over both: $(ls over | tr '\n' ' ')"
} | tee seen
diff seen - <<'SEEN'
it says: NOTE: several default settings have chan
from: file 4755, links 2, null 1:3, time 00:00:00.5, hole 0 MB
top: file 4755, links 2, null 0:0, time 00:00:00.0, hole 20 MB
number of the inode: 256 more
over both: file hole link time 
SEEN
