#!/usr/bin/env bash
# squashfuse 0.1.105 (Debian 12) as root, beside the kernel's mount of the same image, which mksquashfs 4.5.1 made of a container's files.
# A good guess: both show the same files, with the same attributes.
# What it does: in its lists trusted.NAME is security.NAME, and the other way round: what copies the files (cp -a, rsync, tar) loses overlay's opaque mark and a program's capabilities.
# getxattr finds the mark under both names. Two names of a file have two inodes with two links each, so a copy has two files.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount kernel fuse 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download squashfuse=0.1.105-1 libsquashfuse0=0.1.105-1 libfuse2=2.9.9-6+b1 squashfs-tools=1:4.5.1-1 liblzo2-2=2.10-2
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu:$work/lib/x86_64-linux-gnu
mkdir -p tree/opaque kernel fuse
echo content >tree/one; ln tree/one tree/two
python3 - <<'PYTHON'
import os

os.setxattr("tree/opaque", "trusted.overlay.opaque", b"y")
os.setxattr("tree/one", "user.name", b"value")
os.setxattr("tree/one", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
PYTHON
usr/bin/mksquashfs tree image -quiet -no-progress >/dev/null
mount -t squashfs -o loop image kernel
usr/bin/squashfuse image fuse
python3 - <<'PYTHON' | tee seen
import os

for folder in "kernel", "fuse":
    for name in "opaque", "one":
        for attribute in os.listxattr(f"{folder}/{name}"):
            print(f"{folder}, {name}: lists {attribute}")
    one, two = os.stat(f"{folder}/one"), os.stat(f"{folder}/two")
    print(f"{folder}: {one.st_nlink} links, inodes are the same: {one.st_ino == two.st_ino}")
    for attribute in "trusted.overlay.opaque", "security.overlay.opaque":
        try:
            print(f"{folder}, opaque: {attribute} is", os.getxattr(f"{folder}/opaque", attribute))
        except OSError as error:
            print(f"{folder}, opaque: {attribute}:", error.strerror)
PYTHON
diff seen - <<'SEEN'
kernel, opaque: lists trusted.overlay.opaque
kernel, one: lists user.name
kernel, one: lists security.capability
kernel: 2 links, inodes are the same: True
kernel, opaque: trusted.overlay.opaque is b'y'
kernel, opaque: security.overlay.opaque: No data available
fuse, opaque: lists security.overlay.opaque
fuse, one: lists user.name
fuse, one: lists trusted.capability
fuse: 2 links, inodes are the same: False
fuse, opaque: trusted.overlay.opaque is b'y'
fuse, opaque: security.overlay.opaque is b'y'
SEEN
