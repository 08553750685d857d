#!/usr/bin/env bash
# squashfs-tools 4.5.1 (sqfstar) and squashfs-tools-ng 1.2.0 (tar2sqfs) of Debian 12: a layer in which a file has the owner's name and number, as GNU tar writes them.
# A good guess: an image's files get the numbers of the layer: the names are those of the machine that packed it.
# What they do: tar2sqfs takes the numbers. sqfstar looks the names up on the machine it runs on, and takes that machine's number: one layer, another image on each machine. It takes the
# number only if the name is unknown there.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download squashfs-tools=1:4.5.1-1 squashfs-tools-ng=1.2.0-1 libsquashfs1=1.2.0-1 liblzo2-2=2.10-2
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu:$work/lib/x86_64-linux-gnu
touch file
tar --owner=nobody:1000 --group=nogroup:1000 -cf known.tar file
tar --owner=somebody-else:1000 --group=some-other-group:1000 -cf unknown.tar file
tar --owner=nobody:1000 --group=nogroup:1000 --numeric-owner -cf numeric.tar file
echo "here nobody is $(id -u nobody), nogroup $(getent group nogroup | cut -d: -f3)" | tee seen
for archive in known unknown numeric; do
  for maker in sqfstar tar2sqfs; do
    usr/bin/$maker $maker.$archive.image <$archive.tar >/dev/null 2>&1
    echo "$archive, $maker: $(usr/bin/unsquashfs -lln $maker.$archive.image | awk '/file$/ { print $2 }')"
  done
done | tee -a seen
diff seen - <<'SEEN'
here nobody is 65534, nogroup 65534
known, sqfstar: 65534/65534
known, tar2sqfs: 1000/1000
unknown, sqfstar: 1000/1000
unknown, tar2sqfs: 1000/1000
numeric, sqfstar: 1000/1000
numeric, tar2sqfs: 1000/1000
SEEN
