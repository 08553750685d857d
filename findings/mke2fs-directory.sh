#!/usr/bin/env bash
# e2fsprogs 1.47.0 (Debian 12): `mke2fs -d` of a container's root file system, then a mount (root).
# A good guess: the root directory is as that of the source, as with mkfs.erofs and mksquashfs; ext4's inodes of 256 bytes keep parts of a second, and times until 2446.
# What it does: the root directory keeps its extended attributes alone: it is of root, with mode 755, and new. Times lose their part of a second, and 2100 becomes 1963, although the inodes
# have room for both. lost+found is there too.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount mounted 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download e2fsprogs=1.47.0-2+b2 libext2fs2=1.47.0-2+b2
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu:$work/lib/x86_64-linux-gnu
mkdir tree mounted
touch -d 2100-01-01T00:00:00.5Z tree/late; touch -d 1960-01-01T00:00:00.5Z tree/early; touch -d 2001-01-01T00:00:00.5Z tree/file
chown 1000:1000 tree/file tree; chmod 6755 tree/file; chmod 1700 tree
python3 -c 'import os; os.setxattr("tree", "user.name", b"value")'
touch -d 2001-01-01T00:00:00.5Z tree
truncate -s 600M image
sbin/mke2fs -q -t ext4 -d tree image
mount -o loop,ro image mounted
for folder in tree mounted; do
  for name in early file late .; do TZ=UTC stat -c "%n: owner %u, mode %a, %y" $folder/$name | sed "s/ $(date -u +%Y)-.*/ the time of the run/"; done
  python3 -c 'import os, sys; print(sys.argv[1] + ":", os.listxattr(sys.argv[1]), sorted(os.listdir(sys.argv[1])))' $folder
done | tee seen
diff seen - <<'SEEN'
tree/early: owner 0, mode 644, 1960-01-01 00:00:00.500000000 +0000
tree/file: owner 1000, mode 6755, 2001-01-01 00:00:00.500000000 +0000
tree/late: owner 0, mode 644, 2100-01-01 00:00:00.500000000 +0000
tree/.: owner 1000, mode 1700, 2001-01-01 00:00:00.500000000 +0000
tree: ['user.name'] ['early', 'file', 'late']
mounted/early: owner 0, mode 644, 1960-01-01 00:00:00.000000000 +0000
mounted/file: owner 1000, mode 6755, 2001-01-01 00:00:00.000000000 +0000
mounted/late: owner 0, mode 644, 1963-11-25 17:31:44.000000000 +0000
mounted/.: owner 0, mode 755, the time of the run
mounted: ['user.name'] ['early', 'file', 'late', 'lost+found']
SEEN
