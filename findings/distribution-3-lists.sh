#!/usr/bin/env bash
# distribution (the registry) v3.0.0, with its default configuration and a folder for storage: lists of tags and of repositories, and referrers.
# A good guess: `last=NAME` lists the tags behind NAME, also if NAME is no tag (it may have been removed after the page before); a large n gives what there is; OCI 1.1's referrers are there.
# What it does: if NAME is no tag the first tag behind it is left out. A list of repositories with n above 1000 is refused (400), a list of tags is not. The referrers API is not there (404); a
# manifest with a subject is accepted, without the header OCI-Subject, so that clients must keep the list of referrers in a tag.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

GOBIN=$work GOFLAGS=-modcacherw go install github.com/distribution/distribution/v3/cmd/registry@v3.0.0 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf 'version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s/data\nhttp:\n  addr: 127.0.0.1:%s\n' "$work" "$port" >conf.yml
./registry serve conf.yml >log 2>&1 &
for _ in $(seq 100); do curl -so /dev/null "http://127.0.0.1:$port/v2/" && break; sleep 0.1; done
python3 - "http://127.0.0.1:$port" <<'PYTHON' | tee seen
import hashlib
import json
import sys
import urllib.error
import urllib.request

TYPE = "application/vnd.oci.image.manifest.v1+json"


def call(method, url, body=None, kind="application/octet-stream"):
    url = url if url.startswith("http") else sys.argv[1] + url
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind}, method=method)) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def manifest(**fields):
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(b"{}"), "size": 2}
    return json.dumps({"schemaVersion": 2, "mediaType": TYPE, "config": config, "layers": [], **fields}).encode()


location = call("POST", "/v2/repository/blobs/uploads/", b"")[1]["Location"]
call("PUT", f"{location}&digest={digest(b'{}')}", b"{}")
image = manifest()
for tag in "v1", "v2", "v3", "v4":
    call("PUT", f"/v2/repository/manifests/{tag}", image, TYPE)
for query in "", "?last=v2", "?last=v2a", "?last=v0", "?n=5000":
    print(f"tags{query}:", json.loads(call("GET", f"/v2/repository/tags/list{query}")[2])["tags"])
for query in "?n=1000", "?n=1001":
    status, _, body = call("GET", f"/v2/_catalog{query}")
    print(f"repositories{query}:", status, json.loads(body).get("repositories", ""))
status, headers, _ = call("PUT", "/v2/repository/manifests/signature", manifest(subject={"mediaType": TYPE, "digest": digest(image), "size": len(image)}), TYPE)
print("a manifest with a subject:", status, "OCI-Subject:", headers["OCI-Subject"])
print("its referrers:", call("GET", f"/v2/repository/referrers/{digest(image)}")[0])
PYTHON
diff seen - <<'SEEN'
tags: ['v1', 'v2', 'v3', 'v4']
tags?last=v2: ['v3', 'v4']
tags?last=v2a: ['v4']
tags?last=v0: ['v2', 'v3', 'v4']
tags?n=5000: ['v1', 'v2', 'v3', 'v4']
repositories?n=1000: 200 ['repository']
repositories?n=1001: 400 
a manifest with a subject: 201 OCI-Subject: None
its referrers: 404
SEEN
