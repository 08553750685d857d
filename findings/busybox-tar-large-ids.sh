#!/usr/bin/env bash
# busybox 1.35 of Debian 12, as root: a file whose owner has a number above 2097151 (seven octal digits), as the files of a container with mapped ids have.
# A good guess: its tar reads the number where it reads long names, in pax headers too, or says that it cannot.
# What it does: in GNU tar's format the owner is right. In pax format, where GNU tar and Python leave the header's own field at 0, it takes that: the file belongs to root, without a word.
# Sparse files in pax format come out as GNUSparseFile.PID/name.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download busybox-static=1:1.35.0-4+deb12u1+b1 && dpkg -x busybox-static_*.deb .
touch file
tar --format=gnu --owner=:3000000 --group=:3000000 -cf gnu.tar file
tar --format=pax --owner=:3000000 --group=:3000000 -cf pax.tar file
python3 - <<'PYTHON'
import tarfile

with tarfile.open("python.tar", "w", format=tarfile.PAX_FORMAT) as tar:
    member = tarfile.TarInfo("file")
    member.uid = member.gid = 3_000_000
    tar.addfile(member)
PYTHON
truncate -s 1M hole; echo end >>hole
tar -S --format=pax -cf sparse.tar hole
{
  for archive in gnu pax python; do
    mkdir to-$archive
    bin/busybox tar -C to-$archive -xf $archive.tar
    echo "$archive: $(stat -c '%u %g' to-$archive/file)"
  done
  mkdir sparse; bin/busybox tar -C sparse -xf sparse.tar
  (cd sparse; find . -type f -printf '%P %s\n') | sed 's/\.[0-9]*/.PID/'
} | tee seen
diff seen - <<'SEEN'
gnu: 3000000 3000000
pax: 0 0
python: 0 0
GNUSparseFile.PID/hole 516
SEEN
