#!/usr/bin/env bash
# erofs-utils 1.5 of Debian 12: a directory into an image by mkfs.erofs, and out of it by fsck.erofs --extract, as root.
# A good guess: what the image has comes out again, as from a mount of it.
# What it does: hard links become files of their own, extended attributes are left out, and the set-uid bit is gone, without a word.
# All of it is in the image. A hole of 20 MB takes 20 MB in the image, too.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download erofs-utils=1.5-1 liblz4-1=1.9.4-1
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu

mkdir from; echo content >from/file; chmod 4755 from/file; ln from/file from/link
python3 -c 'import os; os.setxattr("from/file", "user.key", b"value")'
truncate -s 20M from/hole
usr/bin/mkfs.erofs image from >/dev/null
usr/bin/fsck.erofs --extract=to image >/dev/null
show() { echo "$1: mode $(stat -c '%a, links %h' "$1/file"), attributes $(python3 -c 'import os, sys; print([n for n in os.listxattr(sys.argv[1]) if n.startswith("user.")])' "$1/file")"; }
{
  show from
  show to
  usr/bin/dump.erofs --path=/file image | grep -oE 'Links: [0-9]+|Xattr size: [0-9]+'
  echo "the image takes $(($(stat -c '%b * %B' image) / 1048576)) MB"
} | tee seen
diff seen - <<'SEEN'
from: mode 4755, links 2, attributes ['user.key']
to: mode 755, links 1, attributes []
Links: 2
Xattr size: 24
the image takes 20 MB
SEEN
