#!/usr/bin/env bash
# distribution (docker-registry) 2.8.2 of Debian 12: uploads.
# A good guess: a chunk whose Content-Range is not where the upload is gets 416 (distribution-spec); a blob that comes with its sha512 is kept under that, or refused.
# What it does: it does not look at Content-Range, and appends. A sha512 is checked, and the answer names the blob by its sha256, as Docker-Content-Digest and Location; both names
# find it afterwards, and a download by the sha512 says the sha256, too. A repository whose last tag was removed has the tags null, not an empty list.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download docker-registry=2.8.2+ds1-1 && dpkg -x docker-registry_*.deb .
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: true}}\nhttp: {addr: "127.0.0.1:%s"}\nlog: {level: error}\n' "$work" "$port" >config.yml
usr/bin/docker-registry serve config.yml >log 2>&1 &
base=http://127.0.0.1:$port
for _ in $(seq 100); do curl -so /dev/null $base/v2/ && break; sleep 0.1; done

python3 - $base <<'PYTHON' | tee seen
import hashlib
import json
import sys
import urllib.request


def ask(method, url, data=None, **headers):
    request = urllib.request.Request(url if "://" in url else sys.argv[1] + url, data, {k.replace("_", "-"): v for k, v in headers.items()}, method=method)
    with urllib.request.urlopen(request) as response:
        return response.status, response.headers, response.read()


def begin():
    return ask("POST", "/v2/a/blobs/uploads/")[1]["Location"]


where = begin()
for chunk, said in ((b"abc", "700-702"), (b"def", "0-2")):
    status, headers, _ = ask("PATCH", where, chunk, Content_Type="application/octet-stream", Content_Range=said)
    where = headers["Location"]
    print("chunk at", said + ":", status, "has", headers["Range"])

name = "sha512:" + hashlib.sha512(b"blob").hexdigest()
status, headers, _ = ask("PUT", begin() + "&digest=" + name, b"blob", Content_Type="application/octet-stream")
print("sha512:", status, "as", headers["Docker-Content-Digest"].split(":")[0])
_, headers, data = ask("GET", "/v2/a/blobs/" + name)
print("by its sha512:", data, "as", headers["Docker-Content-Digest"].split(":")[0])

index = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}).encode()
_, headers, _ = ask("PUT", "/v2/a/manifests/tag", index, Content_Type="application/vnd.oci.image.index.v1+json")
ask("DELETE", "/v2/a/manifests/" + headers["Docker-Content-Digest"])
print(ask("GET", "/v2/a/tags/list")[2].decode().strip())
PYTHON
diff seen - <<'SEEN'
chunk at 700-702: 202 has 0-2
chunk at 0-2: 202 has 0-5
sha512: 201 as sha256
by its sha512: b'blob' as sha256
{"name":"a","tags":null}
SEEN
