#!/usr/bin/env bash
# overlayfs of Linux 6.18: a file is removed in one layer, and the layers above and below are looked at together. It needs root: it makes two mounts and removes them.
# A good guess: a merged directory never lists a whiteout, and what readdir lists, lstat finds.
# What it does: a directory that only one layer has is listed as that layer has it, whiteouts too; lstat of each listed whiteout says that there is no such file.
# Layers of images are so: a layer that says "no file here" about a directory that no layer below it has, or a diff that is stacked without its parent.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount "$work/both" "$work/one" 2>/dev/null || true; rm -rf "$work"' EXIT

mkdir -p with/alone with/shared below/shared empty one both
for directory in with/alone with/shared; do touch "$directory/kept"; mknod "$directory/removed" c 0 0; done
touch below/shared/removed
mount -t overlay overlay -o "lowerdir=with:empty" one
mount -t overlay overlay -o "lowerdir=with:below" both
python3 - <<'PYTHON' | tee seen
import os

for directory in "one/alone", "both/alone", "both/shared":
    for name in sorted(os.listdir(directory)):
        try:
            os.lstat(f"{directory}/{name}")
            print(f"{directory}: {name} is listed and is there")
        except FileNotFoundError:
            print(f"{directory}: {name} is listed and is not there")
PYTHON
diff seen - <<'SEEN'
one/alone: kept is listed and is there
one/alone: removed is listed and is not there
both/alone: kept is listed and is there
both/alone: removed is listed and is not there
both/shared: kept is listed and is there
SEEN
