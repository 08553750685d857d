#!/usr/bin/env bash
# CNI's host-local 1.1.1 of Debian 12.
# A good guess: a subnet's first and last address are never handed out, and CHECK fails where the result names an address which is not the container's.
# What it does: rangeStart and rangeEnd may name the network's own address and the broadcast address, and containers get them.
# CHECK asks only whether the container has some address: it passes for a result with another container's.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download containernetworking-plugins=1.1.1+ds1-3+b5 && dpkg -x containernetworking-plugins_*.deb .
plugin() { # plugin COMMAND CONTAINER START END [MORE]
  printf '{"cniVersion": "1.0.0", "name": "net", "ipam": {"type": "host-local", "dataDir": "%s/data", "ranges": [[{"subnet": "10.9.0.0/29", "rangeStart": "%s", "rangeEnd": "%s"}]]}%s}' "$work" "$3" "$4" "${5:-}" |
    CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_IFNAME=eth0 CNI_NETNS=/none CNI_PATH=usr/lib/cni usr/lib/cni/host-local
}
address() { grep -o '"address": "[^"]*"' | cut -d'"' -f4; }
{
  echo "from the first: $(plugin ADD first 10.9.0.0 10.9.0.5 | address)"
  echo "to the last: $(plugin ADD last 10.9.0.7 10.9.0.7 | address)"
  plugin CHECK first 10.9.0.0 10.9.0.7 ', "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.7/29"}]}' && echo "check with another's address: passed"
} | tee seen
diff seen - <<'SEEN'
from the first: 10.9.0.0/29
to the last: 10.9.0.7/29
check with another's address: passed
SEEN
