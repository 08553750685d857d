#!/usr/bin/env bash
# go-containerregistry's crane v0.21.9, `crane export`, of a layer that removes a lower layer's directory and has a directory of the same name: the whiteout is before or behind it in the archive.
# A good guess: the order does not matter: a whiteout hides what lower layers have, and never what its own layer has (image-spec, "Whiteouts").
# What it does: with the whiteout in front the layer's own directory and its file are missing; with the whiteout behind they are there. umoci unpacks both alike.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

GOBIN=$work GOFLAGS=-modcacherw go install github.com/google/go-containerregistry/cmd/crane@v0.21.9 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
./crane registry serve --address "127.0.0.1:$port" >log 2>&1 &
for _ in $(seq 100); do curl -so /dev/null "http://127.0.0.1:$port/v2/" && break; sleep 0.1; done

mkdir -p lower/folder upper/folder
echo old >lower/folder/old; tar -C lower -cf lower.tar folder
echo new >upper/folder/new; touch upper/.wh.folder
tar -C upper -cf in-front.tar .wh.folder folder
tar -C upper -cf behind.tar folder .wh.folder
for order in in-front behind; do
  image=127.0.0.1:$port/image:$order
  ./crane append -f lower.tar,$order.tar -t "$image" >/dev/null 2>&1
  echo "whiteout $order, export: $(./crane export "$image" - | tar -t | sort | tr '\n' ' ')"
  ./crane flatten "$image" -t "$image-flat" >/dev/null 2>&1
  echo "whiteout $order, flatten: $(./crane export "$image-flat" - | tar -t | sort | tr '\n' ' ')"
done | tee seen
diff seen - <<'SEEN'
whiteout in-front, export: 
whiteout in-front, flatten: 
whiteout behind, export: folder folder/new 
whiteout behind, flatten: folder folder/new 
SEEN
