#!/usr/bin/env bash
# overlayfs of Linux 6.18 (root; ext4 in a file). A program writes a file beside an overlay's upper directory, in the same file system; nothing was written in the overlay. Then umount.
# A good guess: umount of the overlay writes what the overlay has, which is nothing; the other program's data stays in memory until the kernel's time for it, 30 seconds.
# What it does: the last umount of an overlay writes out the whole file system of the upper directory, so it takes as long as other programs' data takes. With the option volatile it
# does not. Another mount of the same overlay (a bind mount, or a descriptor of open_tree) makes the umount free, and the last one pays.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount bound merged 2>/dev/null || true; umount upper.fs 2>/dev/null || true; rm -rf "$work"' EXIT

if [ "$(cat /proc/sys/vm/dirty_writeback_centisecs)" -lt 500 ] || [ "$(cat /proc/sys/vm/dirty_expire_centisecs)" -lt 3000 ]; then echo "this kernel writes sooner than by default"; exit 1; fi
truncate -s 200M image; mkfs.ext4 -qF image
mkdir upper.fs merged bound; mount -o loop image upper.fs; mkdir upper.fs/lower
inside() { grep -aq "mark of $1" image && echo "is in the image" || echo "is not in the image"; }
try() { # try NAME OPTIONS
  mkdir -p "upper.fs/$1.upper" "upper.fs/$1.work"
  mount -t overlay overlay -o "lowerdir=upper.fs/lower,upperdir=upper.fs/$1.upper,workdir=upper.fs/$1.work$2" merged
  sync -f upper.fs
  python3 -c 'import sys; open(f"upper.fs/{sys.argv[1]}", "w").write(f"the mark of {sys.argv[1]}")' "$1"
  echo "$1, before umount: the data $(inside "$1")"
}
{
  try plain ""; umount merged; echo "plain, after umount: the data $(inside plain)"
  try volatile ",volatile"; umount merged; echo "volatile, after umount: the data $(inside volatile)"
  try bound ""; mount --bind merged bound; umount merged; echo "bound, after the first umount: the data $(inside bound)"
  umount bound; echo "bound, after the last umount: the data $(inside bound)"
} | tee seen
diff seen - <<'SEEN'
plain, before umount: the data is not in the image
plain, after umount: the data is in the image
volatile, before umount: the data is not in the image
volatile, after umount: the data is not in the image
bound, before umount: the data is not in the image
bound, after the first umount: the data is not in the image
bound, after the last umount: the data is in the image
SEEN
