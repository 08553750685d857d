#!/usr/bin/env bash
# go-containerregistry's crane v0.21.9: a layer has a file and a hard link to it; the next layer removes the file, or replaces it. Then `crane export` and `crane flatten`.
# A good guess: the link keeps the content it has in the image's file system.
# What they do: they write the link as it is in the lower layer. Where the file was removed the archive, and the flattened image's layer, has a link to nothing, which cannot be
# unpacked; where it was replaced the link has the new file's content.
# And crane refuses a repository of one letter, a valid name (distribution-spec) that its own registry takes.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

GOBIN=$work GOFLAGS=-modcacherw go install github.com/google/go-containerregistry/cmd/crane@v0.21.9 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
./crane registry serve --address "127.0.0.1:$port" >log 2>&1 &
for _ in $(seq 100); do curl -so /dev/null "http://127.0.0.1:$port/v2/" && break; sleep 0.1; done

mkdir lower removed replaced
echo old >lower/file; ln lower/file lower/link; tar -C lower -cf lower.tar file link
touch removed/.wh.file; tar -C removed -cf removed.tar .wh.file
echo new >replaced/file; tar -C replaced -cf replaced.tar file
image=127.0.0.1:$port/image
{
  for upper in removed replaced; do
    ./crane append -f lower.tar,$upper.tar -t "$image:$upper" >/dev/null 2>&1
    ./crane flatten "$image:$upper" -t "$image:$upper-flat" >/dev/null 2>&1
    for tag in $upper $upper-flat; do
      mkdir "to-$tag"
      ./crane export "$image:$tag" "$tag.tar"
      if tar -C "to-$tag" -xf "$tag.tar" 2>/dev/null; then echo "$tag: unpacked, link is $(cat "to-$tag/link")"; else echo "$tag: $(tar -tvf "$tag.tar" | grep -o 'link link to file'), cannot be unpacked"; fi
    done
  done
  echo "its registry, repository a: $(curl -so /dev/null -w '%{http_code}' -X POST "http://127.0.0.1:$port/v2/a/blobs/uploads/")"
  { ./crane append -f lower.tar -t "127.0.0.1:$port/a:1" 2>&1 || true; } | grep -o 'could not parse reference'
} | tee seen
diff seen - <<'SEEN'
removed: link link to file, cannot be unpacked
removed-flat: link link to file, cannot be unpacked
replaced: unpacked, link is new
replaced-flat: unpacked, link is new
its registry, repository a: 202
could not parse reference
SEEN
