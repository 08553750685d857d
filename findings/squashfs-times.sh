#!/usr/bin/env bash
# Files from 1960 and from 2200 for squashfs, whose times are unsigned numbers of 32 bits: squashfs-tools 4.5.1 and squashfs-tools-ng 1.2.0 of Debian 12.
# A good guess: a time that cannot be kept is an error, or becomes the nearest one that can.
# What they do: tar2sqfs takes the nearest (1970, 2106). mksquashfs says nothing and wraps around: 1960 is 2096, 2200 is 2063. sqfstar, of the same package, wraps 2200
# around, and refuses an archive that has 1960 in it.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download squashfs-tools-ng=1.2.0-1 libsquashfs1=1.2.0-1 squashfs-tools=1:4.5.1-1 liblzo2-2=2.10-2 liblz4-1=1.9.4-1
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu:$work/lib/x86_64-linux-gnu TZ=UTC

time_of() { usr/bin/unsquashfs -lln image | awk '$NF ~ /file/ { print $4 }'; }
for year in 1960 2200; do
  rm -rf from; mkdir from; touch -d $year-01-01 from/file
  tar --format=gnu -C from -cf $year.tar file
  rm -f image; usr/bin/mksquashfs from image -quiet -no-progress
  echo "mksquashfs $year: $(time_of)"
  rm -f image; usr/bin/tar2sqfs -q image <$year.tar
  echo "tar2sqfs $year: $(time_of)"
  rm -f image
  if usr/bin/sqfstar -quiet -no-progress image <$year.tar 2>/dev/null; then echo "sqfstar $year: $(time_of)"; else echo "sqfstar $year: error"; fi
done | tee seen
diff seen - <<'SEEN'
mksquashfs 1960: 2096-02-06
tar2sqfs 1960: 1970-01-01
sqfstar 1960: error
mksquashfs 2200: 2063-11-24
tar2sqfs 2200: 2106-02-07
sqfstar 2200: 2063-11-24
SEEN
