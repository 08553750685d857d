#!/usr/bin/env bash
# containerd v2.1.4.
# A good guess: a proxy plugin may have the name of a plugin of containerd's own that is disabled, and so takes its place.
# What it does: it panics at the start, as it does if that plugin is not disabled.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

go mod init scratch 2>/dev/null
GOFLAGS=-modcacherw go get github.com/containerd/containerd/v2/cmd/containerd@v2.1.4 2>/dev/null
go build -o containerd github.com/containerd/containerd/v2/cmd/containerd

for name in other overlayfs; do
  cat >config.toml <<TOML
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.overlayfs"]
[grpc]
address = "$work/c.sock"
[proxy_plugins.$name]
type = "snapshot"
address = "$work/s.sock"
TOML
  ./containerd -c config.toml >log 2>&1 &
  for _ in $(seq 100); do { [ -S c.sock ] || ! kill -0 $! 2>/dev/null; } && break; sleep 0.1; done
  kill $! 2>/dev/null || true
  wait $! || true
  echo "$name: $(grep -o '^panic: .*' log || echo starts)"
  rm -f c.sock
done | tee seen
diff seen - <<'SEEN'
other: starts
overlayfs: panic: io.containerd.snapshotter.v1.overlayfs: plugin: id already registered
SEEN
