#!/usr/bin/env bash
# erofs-utils 1.5 (Debian 12): mkfs.erofs and dump.erofs.
# A good guess: --exclude-path takes a directory with a slash at its end, as tar and rsync do, or says that nothing matched; -T0 makes the same image of the same files each time; an image
# that is made inside its own source is not put into itself; dump.erofs ends with an error for a path that is not there.
# What they do: with a slash at the end, or at the beginning, or with ./ nothing is left out, without a word. With -T0 two images differ, in a random UUID, until -U sets it. The image has
# itself as a file. dump.erofs prints an error and ends with 0.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount mounted 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download erofs-utils=1.5-1 liblz4-1=1.9.4-1 libfuse2=2.9.9-6+b1
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu:$work/lib/x86_64-linux-gnu PATH=$work/usr/bin:$PATH
mkdir -p tree/folder mounted
echo content >tree/folder/file; echo content >tree/other
listed() { mount -t erofs -o loop "$1" mounted; (cd mounted && find . -type f -printf '%P ' | tr ' ' '\n' | sort | tr '\n' ' '); umount mounted; }
{
  for path in folder folder/ /folder ./folder no-such-folder; do
    mkfs.erofs --exclude-path=$path image tree >log 2>&1
    echo "--exclude-path=$path: $(listed image)"
  done
  mkfs.erofs -T0 one tree >log 2>&1; mkfs.erofs -T0 two tree >log 2>&1
  if cmp -s one two; then echo "-T0: the same image"; else echo "-T0: another image"; fi
  for name in one two; do mkfs.erofs -T0 -U 11111111-2222-3333-4444-555555555555 $name tree >log 2>&1; done
  if cmp -s one two; then echo "-T0 -U: the same image"; else echo "-T0 -U: another image"; fi
  mkfs.erofs tree/own.image tree >log 2>&1
  echo "made inside its source: $(listed tree/own.image)"
  status=0; dump.erofs --path=/no-such-file one >log 2>&1 || status=$?
  echo "dump.erofs: $status, $(grep -o 'read inode failed.*' log)"
} | tee seen
diff seen - <<'SEEN'
--exclude-path=folder: other 
--exclude-path=folder/: folder/file other 
--exclude-path=/folder: folder/file other 
--exclude-path=./folder: folder/file other 
--exclude-path=no-such-folder: folder/file other 
-T0: another image
-T0 -U: the same image
made inside its source: folder/file other own.image 
dump.erofs: 0, read inode failed @ /no-such-file
SEEN
