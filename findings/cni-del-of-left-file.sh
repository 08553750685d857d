#!/usr/bin/env bash
# CNI plugins 1.1.1 of Debian 12: DEL where the network namespace is gone (root).
# A good guess: DEL succeeds, as the specification wants it where things are missing: also where the file of the namespace was unmounted, and not yet removed.
# What they do: where the file is missing DEL succeeds, except with host-device. Where an ordinary file is left each of them fails ("unknown FS magic"), each time again, until
# somebody removes that file. The address is free all the same: host-local runs first.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download containernetworking-plugins=1.1.1+ds1-3+b5 && dpkg -x containernetworking-plugins_*.deb .
touch left
for plugin in bridge ptp macvlan ipvlan vlan loopback host-device; do
  for path in missing left; do
    config='{"cniVersion": "1.0.0", "name": "net", "type": "'$plugin'", "master": "lo", "vlanId": 5, "device": "lo", "ipam": {"type": "host-local", "dataDir": "'$work'/data", "ranges": [[{"subnet": "10.9.0.0/29"}]]}}'
    if CNI_COMMAND=DEL CNI_CONTAINERID=container CNI_IFNAME=eth0 CNI_NETNS=$work/$path CNI_PATH=usr/lib/cni unshare -n usr/lib/cni/$plugin <<<"$config" >answer; then
      echo "$plugin, $path: succeeds"
    else
      echo "$plugin, $path: $(grep -oE 'unknown FS magic|no such file' answer)"
    fi
  done
done | tee seen
diff seen - <<'SEEN'
bridge, missing: succeeds
bridge, left: unknown FS magic
ptp, missing: succeeds
ptp, left: unknown FS magic
macvlan, missing: succeeds
macvlan, left: unknown FS magic
ipvlan, missing: succeeds
ipvlan, left: unknown FS magic
vlan, missing: succeeds
vlan, left: unknown FS magic
loopback, missing: succeeds
loopback, left: unknown FS magic
host-device, missing: no such file
host-device, left: unknown FS magic
SEEN
