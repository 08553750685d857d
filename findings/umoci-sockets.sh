#!/usr/bin/env bash
# umoci 0.4.7 of Debian 12 (root): `repack` of a bundle in whose root file system a program has left its socket.
# A good guess: the socket is left out, with a warning, as by GNU tar and containerd's diff.
# What it does: repack fails, since Go's tar writer has no sockets; no layer and no tag is made until somebody removes the socket.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download umoci=0.4.7+ds-3+b7
dpkg -x umoci_*.deb .
umoci() { usr/bin/umoci "$@"; }
mkdir from; echo text >from/file
umoci init --layout image; umoci new --image image:a; umoci insert --image image:a from /data
umoci unpack --image image:a bundle
echo more >bundle/rootfs/data/more
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("bundle/rootfs/data/socket")'
repack() { if umoci repack --image image:b bundle 2>errors; then echo "$1: repacked"; else echo "$1: $(grep -o 'sockets not supported' errors | head -1)"; fi; }
{
  repack "with a socket"
  echo "tags: $(umoci list --layout image | tr '\n' ' ')"
  rm bundle/rootfs/data/socket
  repack "without it"
  echo "tags: $(umoci list --layout image | tr '\n' ' ')"
} | tee seen
diff seen - <<'SEEN'
with a socket: sockets not supported
tags: a 
without it: repacked
tags: a b 
SEEN
