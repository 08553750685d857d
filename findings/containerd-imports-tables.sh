#!/usr/bin/env bash
# containerd 1.6.20 of Debian 12: a configuration with `imports`; both files set one key each of the same plugin, the main one has a misspelt key as well.
# A good guess: tables are merged key by key, as [grpc] and the lists are; the main file is the last word; an unknown key is an error.
# What it does: the imported file's table replaces a plugin's whole table: the other keys fall back to their defaults, not to what the main file has. Lists are joined.
# An imported value wins over the main file's; nobody speaks of the unknown key.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download containerd=1.6.20~ds1-1+deb12u3 && dpkg -x containerd_*.deb .
cat >main.toml <<CONF
version = 2
imports = ["more.toml"]
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  uid = 7
  gid = 7
[plugins."io.containerd.gc.v1.scheduler"]
  pause_threshold = 0.5
  mutation_treshold = 5
CONF
cat >more.toml <<CONF
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs"]
[grpc]
  gid = 8
[plugins."io.containerd.gc.v1.scheduler"]
  deletion_threshold = 9
CONF
usr/bin/containerd -c main.toml config dump >dumped 2>&1
{
  sed -n '/^\[grpc\]/,/^$/p' dumped | grep -E '^  (uid|gid)'
  grep -E '^disabled_plugins|deletion_threshold|mutation_t|pause_threshold' dumped
} | tee seen
diff seen - <<'SEEN'
  gid = 8
  uid = 7
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs"]
    deletion_threshold = 9
    mutation_threshold = 100
    pause_threshold = 0.02
SEEN
