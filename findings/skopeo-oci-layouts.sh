#!/usr/bin/env bash
# skopeo 1.9.3 of Debian 12: copies between local directories and archives.
# A good guess: what goes into a local layout stays as it is, unless compression is asked for; and a second image goes into an archive beside the first, or is refused.
# What it does: a layer that is not compressed is gzipped on its way into oci: (so the image has another digest), not on its way into dir:, and --dest-decompress changes nothing of that.
# A second copy into a docker-archive is refused; into an oci-archive it succeeds, and the first image is gone.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download skopeo=1.9.3+ds1-1+b10 libgpgme11=1.18.0-3+deb12u1 libassuan0=2.5.5-5 libdevmapper1.02.1=2:1.02.185-2
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu:$work/lib/x86_64-linux-gnu
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >policy
copy() { usr/bin/skopeo --policy policy copy -q "$@" 2>&1; }

python3 - <<'PYTHON'
import hashlib
import io
import json
import os
import tarfile

os.makedirs("plain/blobs/sha256")


def blob(data, media_type):
    digest = hashlib.sha256(data).hexdigest()
    with open("plain/blobs/sha256/" + digest, "wb") as file:
        file.write(data)
    return {"mediaType": "application/vnd.oci.image." + media_type, "digest": "sha256:" + digest, "size": len(data)}


layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w") as tar:
    tar.addfile(tarfile.TarInfo("file"))
content = blob(layer.getvalue(), "layer.v1.tar")
config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [content["digest"]]}}
manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": blob(json.dumps(config).encode(), "config.v1+json"), "layers": [content]}
image = blob(json.dumps(manifest).encode(), "manifest.v1+json") | {"annotations": {"org.opencontainers.image.ref.name": "image"}}
with open("plain/index.json", "w") as file:
    json.dump({"schemaVersion": 2, "manifests": [image]}, file)
with open("plain/oci-layout", "w") as file:
    file.write('{"imageLayoutVersion": "1.0.0"}')
PYTHON
layers() { usr/bin/skopeo --policy policy inspect --raw "$1" | grep -oE 'layer\.v1\.tar(\+gzip)?'; }
{
  for way in oci:layout:image dir:directory; do
    copy oci:plain:image $way
    echo "to ${way%%:*}: $(layers $way)"
  done
  copy --dest-decompress oci:plain:image oci:asked:image
  echo "to oci, --dest-decompress: $(layers oci:asked:image)"
  for kind in docker oci; do
    copy oci:plain:image $kind-archive:$kind.tar:example/one:1
    copy oci:plain:image $kind-archive:$kind.tar:example/two:2 >/dev/null && echo "$kind-archive: copied" || echo "$kind-archive: refused"
    usr/bin/skopeo --policy policy inspect --raw $kind-archive:$kind.tar:example/one:1 >/dev/null 2>&1 && echo "the first is there" || echo "the first is gone"
  done
} | tee seen
diff seen - <<'SEEN'
to oci: layer.v1.tar+gzip
to dir: layer.v1.tar
to oci, --dest-decompress: layer.v1.tar+gzip
docker-archive: refused
the first is there
oci-archive: copied
the first is gone
SEEN
