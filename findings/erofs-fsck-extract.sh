#!/usr/bin/env bash
# erofs-utils 1.5 (Debian 12): `fsck.erofs --extract` as root, of an image that `mkfs.erofs` made of a container's files, beside the same image mounted.
# A good guess: what is extracted is what a mount shows.
# What it does: it keeps owners, times of files and devices, so that all looks well; two names of a file become two files, set-user-ID bits go, and so do all extended attributes:
# capabilities, and the mark of an opaque directory, without which an overlay shows what was removed.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount mounted 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get download -qq erofs-utils=1.5-1 liblz4-1=1.9.4-1 libfuse2=2.9.9-6+b1 2>/dev/null
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu:$work/lib/x86_64-linux-gnu
mkdir -p tree/opaque mounted
echo content >tree/one; ln tree/one tree/two; chown 1000:1000 tree/one; chmod 4755 tree/one; touch -d 1999-01-01T00:00:00Z tree/one
python3 -c 'import os; os.setxattr("tree/opaque", "trusted.overlay.opaque", b"y"); os.setxattr("tree/one", "user.name", b"value")'
usr/bin/mkfs.erofs image tree >/dev/null 2>&1
usr/bin/fsck.erofs --extract=extracted image >/dev/null 2>&1
mount -t erofs -o loop image mounted
{
  for folder in mounted extracted; do
    echo "$folder: $(stat -c 'owner %u, mode %a, links %h, seconds %Y' $folder/one)"
    python3 -c 'import os, sys; print(sys.argv[1] + ":", *(os.listxattr(f"{sys.argv[1]}/{name}") for name in ("one", "opaque")))' $folder
  done
} | tee seen
diff seen - <<'SEEN'
mounted: owner 1000, mode 4755, links 2, seconds 915148800
mounted: ['user.name'] ['trusted.overlay.opaque']
extracted: owner 1000, mode 755, links 1, seconds 915148800
extracted: [] []
SEEN
