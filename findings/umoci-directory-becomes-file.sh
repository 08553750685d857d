#!/usr/bin/env bash
# umoci 0.4.7 of Debian 12, and containerd 1.6.20 with its native snapshotter (root): a directory with a file in it is removed, a file takes its name, `umoci repack`.
# A good guess: the layer has the new file; that replaces the directory and all below it (image-spec, layer.md).
# What it does: the layer has the new file and, behind it, a whiteout for each name the directory had, below what is a file by then. umoci itself unpacks that; containerd
# fails with "not a directory", so the image cannot be used there.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download umoci=0.4.7+ds-3+b7 containerd=1.6.20~ds1-1+deb12u3
for package in *.deb; do dpkg -x "$package" .; done
cat >conf <<CONF
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$work/s"
CONF
usr/bin/containerd -c conf >log 2>&1 &
ctr() { usr/bin/ctr -a s "$@"; }
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done

umoci() { usr/bin/umoci --log=fatal "$@"; }
umoci init --layout layout
umoci new --image layout:new
umoci unpack --image layout:new bundle
mkdir bundle/rootfs/name; touch bundle/rootfs/name/below
umoci repack --refresh-bundle --image layout:directory bundle
rm -r bundle/rootfs/name; touch bundle/rootfs/name
umoci repack --image layout:file bundle
{
  python3 - <<'PYTHON'
import json
import tarfile


def document(digest):
    with open("layout/blobs/" + digest.replace(":", "/")) as file:
        return json.load(file)


with open("layout/index.json") as file:
    index = json.load(file)
manifest = document(next(m["digest"] for m in index["manifests"] if m["annotations"]["org.opencontainers.image.ref.name"] == "file"))
print("layer:", [m.name for m in tarfile.open("layout/blobs/" + manifest["layers"][-1]["digest"].replace(":", "/")) if m.name.startswith("name")])
PYTHON
  umoci unpack --image layout:file again
  echo "umoci: $(stat -c %F again/rootfs/name)"
  umoci rm --image layout:new; umoci rm --image layout:directory
  tar -C layout -cf layout.tar .
  { ctr images import --base-name image --snapshotter native layout.tar 2>&1 >/dev/null || true; } | grep -o 'not a directory' | tail -1 | sed 's/^/containerd: /'
} | tee seen
diff seen - <<'SEEN'
layer: ['name', 'name/.wh.below']
umoci: regular empty file
containerd: not a directory
SEEN
