#!/usr/bin/env bash
# umoci 0.4.7 of Debian 12: `insert --opaque DIR /data`, which adds a layer that replaces a directory of the image; and GNU tar on that layer.
# A good guess: the layer is a tar like any other: the directory, the mark that hides what lower layers have in it, the files, and two blocks of zeros.
# What it does: the mark is the first entry, before the directory that it is in, with mode 0000 and the time 0. The stream ends with the last byte of the last file: the block is
# not filled up, and no blocks of zeros follow. Go's reader (umoci, containerd) takes that for the end; GNU tar unpacks all of it and fails, and Python's tarfile raises.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download umoci=0.4.7+ds-3+b7
dpkg -x umoci_*.deb .
mkdir -p from/sub && echo text >from/sub/file
chmod 750 from
usr/bin/umoci init --layout image
usr/bin/umoci new --image image:a
usr/bin/umoci insert --image image:a --opaque from /data
python3 - <<'PYTHON'
import gzip, json
def blob(descriptor):
    return "image/blobs/" + descriptor["digest"].replace(":", "/")
manifest = json.load(open(blob(json.load(open("image/index.json"))["manifests"][0])))
open("layer", "wb").write(gzip.open(blob(manifest["layers"][0])).read())
PYTHON
{
  tar tvf layer --full-time 2>errors | awk '{ print $1, $NF, ($4 == "1970-01-01" ? "1970" : "now") }' || true
  grep -o 'Unexpected EOF' errors
  python3 -c 'import tarfile; tarfile.open("layer").getnames()' 2>&1 | tail -1 || true
  echo "the last bytes: $(tail -c 5 layer), length modulo 512: $(($(stat -c %s layer) % 512))"
} | tee seen
diff seen - <<'SEEN'
---------- data/.wh..wh..opq 1970
drwxr-x--- data/ now
drwxr-xr-x data/sub/ now
-rw-r--r-- data/sub/file now
Unexpected EOF
tarfile.ReadError: unexpected end of data
the last bytes: text, length modulo 512: 5
SEEN
