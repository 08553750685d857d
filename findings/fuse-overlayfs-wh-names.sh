#!/usr/bin/env bash
# fuse-overlayfs 1.10 (Debian 12): names that begin with `.wh.`, which mean a whiteout in a layer's archive: in a lower directory, and made in the mount, as by a program that keeps
# unpacked layers in its container.
# A good guess: as for the kernel's overlay, a whiteout is a device 0:0, or an attribute of a directory; such names are names like others.
# What it does: it takes them for whiteouts in lower directories, hides what they name and themselves, and takes `.wh..wh..opq` for an opaque directory. To make one in the mount is
# EINVAL.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount fuse kernel 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get download -qq fuse-overlayfs=1.10-1 libfuse3-3=3.14.0-4 2>/dev/null
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/lib/x86_64-linux-gnu:$work/usr/lib/x86_64-linux-gnu
mkdir -p lower/folder middle/folder fuse kernel {fuse,kernel}-{upper,work}
touch lower/file lower/folder/a middle/.wh.file middle/folder/.wh..wh..opq middle/folder/b
usr/bin/fuse-overlayfs -o lowerdir=middle:lower,upperdir=fuse-upper,workdir=fuse-work fuse >/dev/null 2>&1
mount -t overlay overlay -o lowerdir=middle:lower,upperdir=kernel-upper,workdir=kernel-work kernel
{
  for mount in kernel fuse; do
    echo "$mount has $(find $mount -type f -printf '%P\n' | sort | tr '\n' ' ')"
    touch $mount/.wh.made 2>said && echo "$mount: made" || echo "$mount: $(grep -o 'Invalid argument' said)"
  done
} | tee seen
diff seen - <<'SEEN'
kernel has .wh.file file folder/.wh..wh..opq folder/a folder/b 
kernel: made
fuse has folder/b 
fuse: Invalid argument
SEEN
