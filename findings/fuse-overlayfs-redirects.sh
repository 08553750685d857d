#!/usr/bin/env bash
# fuse-overlayfs 1.10 of Debian 12 (root), over an upper directory that the kernel's overlay wrote with redirect_dir and metacopy on.
# A good guess: it reads the kernel's marks, as it does for whiteouts and opaque directories, or refuses what it cannot read.
# What it does: it does not know the marks. A directory that was renamed is empty; a file whose mode was changed has its size, and zeros as content. Nothing says so. The kernel follows
# the first mark, and without metacopy=on it refuses to open the file.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount "$work"/written "$work"/fuse "$work"/kernel 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download fuse-overlayfs=1.10-1 libfuse3-3=3.14.0-4
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu:$work/lib/x86_64-linux-gnu
mkdir -p lower/old upper temporary written fuse kernel
echo content >lower/old/file; echo content >lower/plain
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=temporary,redirect_dir=on,metacopy=on written
mv written/old written/new; chmod 600 written/plain
show() { echo "$1: new has $(find "$1/new" -type f | wc -l) file, plain: $(od -An -c "$1/plain" 2>&1 | tr -s " " | sed "s/.*: / /")"; }
{
  show written
  umount written
  usr/bin/fuse-overlayfs -o lowerdir=upper:lower fuse 2>/dev/null
  show fuse
  mount -t overlay overlay -o ro,lowerdir=upper:lower,metacopy=off kernel
  show kernel
} | tee seen
diff seen - <<'SEEN'
written: new has 1 file, plain:  c o n t e n t \n
fuse: new has 0 file, plain:  \0 \0 \0 \0 \0 \0 \0 \0
kernel: new has 1 file, plain:  Operation not permitted
SEEN
