#!/usr/bin/env bash
# tar2sqfs (squashfs-tools-ng 1.2.0) and sqfstar (squashfs-tools 4.5.1) of Debian 12: a tar that has the same name twice, as `tar -r` makes it, and one that begins with "./", as `tar -c .` does.
# A good guess: as in tar the later entry of a name wins, and "./" gives the root its mode and time.
# What they do: tar2sqfs refuses the archive ("File exists"), also where a directory comes twice; sqfstar warns, keeps the first entry, and succeeds.
# sqfstar passes over "./": the root has mode 0777, whatever the archive says. tar2sqfs gives it the archive's.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download squashfs-tools-ng=1.2.0-1 libsquashfs1=1.2.0-1 squashfs-tools=1:4.5.1-1 liblzo2-2=2.10-2 liblz4-1=1.9.4-1
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu:$work/lib/x86_64-linux-gnu

mkdir first second root; echo first >first/file; echo second >second/file
chmod 700 root; touch root/file
tar -C first -cf twice.tar file; tar -C second -rf twice.tar file
mkdir first/dir; tar -C first -cf directory.tar dir; tar -C first -rf directory.tar dir
tar -C root -cf dot.tar .
image() { # image TOOL TAR: "error", or "image", which is in ./image
  rm -f image
  if [ "$1" = tar2sqfs ]; then usr/bin/tar2sqfs -q image <"$2" 2>/dev/null || { echo error; return; }; fi
  if [ "$1" = sqfstar ]; then usr/bin/sqfstar -quiet -no-progress image <"$2" 2>/dev/null || { echo error; return; }; fi
  echo image
}
{
  for tool in tar2sqfs sqfstar; do
    made=$(image $tool twice.tar)
    echo "$tool, a file twice: $made $(if [ "$made" = image ]; then usr/bin/unsquashfs -cat image file; fi)"
    echo "$tool, a directory twice: $(image $tool directory.tar)"
    echo "$tool, ./ with mode 0700: $(image $tool dot.tar), $(usr/bin/unsquashfs -ll image | grep -o '^d[rwx-]*')"
  done
} | tee seen
diff seen - <<'SEEN'
tar2sqfs, a file twice: error 
tar2sqfs, a directory twice: error
tar2sqfs, ./ with mode 0700: image, drwx------
sqfstar, a file twice: image first
sqfstar, a directory twice: image
sqfstar, ./ with mode 0700: image, drwxrwxrwx
SEEN
