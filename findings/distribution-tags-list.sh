#!/usr/bin/env bash
# distribution (docker-registry), 2.8.2 of Debian 12: `tags/list` with `n` and `last`, of a repository with twenty tags; then the tags go one way or the other.
# A good guess: tags come in order, `n` of them, those after `last` (distribution-spec, Listing Tags), as `_catalog` does it; a tag is deleted, or that is refused with 405 or
# UNSUPPORTED; a repository without tags has the list [].
# What it does: it ignores both, and answers all tags, in an order that differs from one request to the next. DELETE of a tag is 400, DIGEST_INVALID. When the last manifest is gone
# the list is null.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download docker-registry=2.8.2+ds1-1 && dpkg -x docker-registry_*.deb .
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: true}}\nhttp: {addr: "127.0.0.1:%s"}\nlog: {level: error}\n' "$work" "$port" >config.yml
usr/bin/docker-registry serve config.yml >log 2>&1 &
base=http://127.0.0.1:$port/v2
for _ in $(seq 100); do curl -so /dev/null $base/ && break; sleep 0.1; done

printf '{}' >config
digest=sha256:$(sha256sum config | cut -d' ' -f1)
location=$(curl -si -X POST $base/image/blobs/uploads/ | tr -d '\r' | sed -n 's/^Location: //p')
curl -so /dev/null -X PUT -H 'Content-Type: application/octet-stream' --data-binary @config "$location&digest=$digest"
type=application/vnd.oci.image.manifest.v1+json
printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":2},"layers":[]}' $type "$digest" >manifest
for tag in $(seq 20); do curl -so /dev/null -X PUT -H "Content-Type: $type" --data-binary @manifest "$base/image/manifests/$tag"; done
list() { curl -s "$base/image/tags/list$1" | python3 -c 'import json, sys; tags = json.load(sys.stdin)["tags"]; print(len(tags), tags == sorted(tags))'; }
{
  echo "all: $(list '' | cut -d' ' -f1)"
  echo "two: $(list '?n=2' | cut -d' ' -f1)"
  echo "after 5: $(list '?last=5' | cut -d' ' -f1)"
  echo "in order, of ten requests: $(for _ in $(seq 10); do list ''; done | grep -c True || true)"
  echo "repositories, none of one: $(curl -s "$base/_catalog?n=0")"
  echo "delete a tag: $(curl -s -w ' %{http_code}' -X DELETE "$base/image/manifests/1" | grep -o 'DIGEST_INVALID\|[0-9]*$' | tr '\n' ' ')"
  echo "delete the manifest: $(curl -so /dev/null -w '%{http_code}' -X DELETE "$base/image/manifests/sha256:$(sha256sum manifest | cut -d' ' -f1)")"
  curl -s "$base/image/tags/list"
} | tee seen
diff seen - <<'SEEN'
all: 20
two: 20
after 5: 20
in order, of ten requests: 0
repositories, none of one: {"repositories":[]}
delete a tag: DIGEST_INVALID 400 
delete the manifest: 202
{"name":"image","tags":null}
SEEN
