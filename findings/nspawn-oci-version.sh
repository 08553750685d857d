#!/usr/bin/env bash
# systemd-nspawn 252 of Debian 12 with --oci-bundle (root), on bundles that `runc spec` of runc 1.1.5 wrote.
# A good guess: versions of the runtime-spec are semantic ones, so it takes any 1.x, or at least any 1.0.x, as the spec's field asks.
# What it does: it takes 1.0.0, to the letter, and refuses every other version; so it refuses what runc of the same Debian writes.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download runc=1.1.5+ds1-1+deb12u1 systemd-container=252.39-1~deb12u2 libsystemd-shared=252.39-1~deb12u2
for package in *.deb; do dpkg -x "$package" .; done
mkdir -p bundle/rootfs/usr bundle/rootfs/etc; touch bundle/rootfs/etc/os-release
usr/sbin/runc spec --bundle bundle
try() { # try VERSION: is it refused?
  sed -i "s/\"ociVersion\": \".*\"/\"ociVersion\": \"$1\"/" bundle/config.json
  LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu/systemd timeout 60 usr/bin/systemd-nspawn --oci-bundle=bundle --register=no --keep-unit </dev/null >log 2>&1 || true
  echo "$1: $(grep -o 'version not supported' log || echo taken)"
}
{
  echo "runc writes $(grep -oE '"ociVersion": "[^"]*"' bundle/config.json | cut -d'"' -f4)"
  for version in 1.0.0 1.0.1 1.0.2 1.0.2-dev 1.1.0 1.2.0; do try $version; done
} | tee seen
diff seen - <<'SEEN'
runc writes 1.0.2-dev
1.0.0: taken
1.0.1: version not supported
1.0.2: version not supported
1.0.2-dev: version not supported
1.1.0: version not supported
1.2.0: version not supported
SEEN
