#!/usr/bin/env bash
# squashfs-tools-ng 1.2.0 (Debian 12): gensquashfs of a directory, with the options that keep times and extended attributes (-k -x), beside mksquashfs 4.5.1.
# A good guess: with those options the image has what the directory has.
# What it does: two names of a file are two files; an extended attribute without a value is left out; the root directory is of root, from 1970, with mode 755, and without its attributes.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount mounted 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download squashfs-tools=1:4.5.1-1 squashfs-tools-ng=1.2.0-1 libsquashfs1=1.2.0-1 liblzo2-2=2.10-2 libselinux1=3.4-1+b6
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu:$work/lib/x86_64-linux-gnu
mkdir tree mounted
echo content >tree/one; ln tree/one tree/two
python3 -c 'import os; [os.setxattr(*each) for each in (("tree/one", "user.empty", b""), ("tree/one", "user.name", b"value"), ("tree", "user.root", b"value"))]'
chmod 1700 tree; chown 1000:1000 tree; touch -d 2001-01-01T00:00:00Z tree tree/one
usr/bin/mksquashfs tree mksquashfs.image -quiet -no-progress >/dev/null
usr/bin/gensquashfs -q -k -x -D tree gensquashfs.image
for maker in mksquashfs gensquashfs; do
  mount -o loop $maker.image mounted
  echo "$maker: one has $(stat -c '%h names, of %y' mounted/one), the root: $(TZ=UTC stat -c 'owner %u, mode %a, %y' mounted)"
  python3 -c 'import os; print("  attributes:", {name: os.listxattr(f"mounted/{name}") for name in (".", "one")})'
  umount mounted
done | tee seen
diff seen - <<'SEEN'
mksquashfs: one has 2 names, of 2001-01-01 00:00:00.000000000 +0000, the root: owner 1000, mode 1700, 2001-01-01 00:00:00.000000000 +0000
  attributes: {'.': ['user.root'], 'one': ['user.empty', 'user.name']}
gensquashfs: one has 1 names, of 2001-01-01 00:00:00.000000000 +0000, the root: owner 0, mode 755, 1970-01-01 00:00:00.000000000 +0000
  attributes: {'.': ['user.root'], 'one': ['user.name']}
SEEN
