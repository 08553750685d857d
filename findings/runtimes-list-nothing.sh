#!/usr/bin/env bash
# runc 1.1.5 and crun 1.8.1 of Debian 12.
# A good guess: `list --format json` prints a list, which is empty where there is no container.
# What they do: runc prints null, crun an empty list over three lines.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download runc=1.1.5+ds1-1+deb12u1 crun=1.8.1-1+deb12u1 libyajl2=2.1.0-3+deb12u2
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu
mkdir state
{
  echo "runc: $(usr/sbin/runc --root state list --format json)"
  echo "crun: $(usr/bin/crun --root state list --format json | tr -d '\n')"
} | tee seen
diff seen - <<'SEEN'
runc: null
crun: []
SEEN
