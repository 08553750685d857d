#!/usr/bin/env bash
# CNI's tuning plugin 1.1.1 of Debian 12 (root): ADD, and CHECK of the same configuration right after it.
# A good guess: what ADD has set, CHECK finds.
# What it does: CHECK compares texts, and fails for a MAC address with capital letters, which the kernel shows in small ones, and for a sysctl of two numbers, between which the kernel
# puts a tab. ADD puts the interface's name for IFNAME in a key of a sysctl; CHECK does not, and finds no such file.
set -euo pipefail
if [ "${1:-}" != inside ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download containernetworking-plugins=1.1.1+ds1-3+b5 && dpkg -x containernetworking-plugins_*.deb .)
  unshare -n bash "$0" inside "$work"
  exit
fi
work=$2; cd "$work"
ip link add eth0 type veth peer name peer
plugin() { # plugin COMMAND SETTINGS
  printf '{"cniVersion": "1.0.0", "name": "net", "type": "tuning", "dataDir": "%s/data", "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}]}, %s}' "$work" "$2" |
    CNI_COMMAND=$1 CNI_CONTAINERID=c CNI_IFNAME=eth0 CNI_NETNS=/proc/self/ns/net CNI_PATH=usr/lib/cni usr/lib/cni/tuning
}
{
  for settings in '"mtu": 1400' '"mac": "02:aa:bb:cc:dd:ee"' '"mac": "02:AA:BB:CC:DD:EE"' '"sysctl": {"net.ipv4.conf.eth0.forwarding": "1"}' \
    '"sysctl": {"net.ipv4.conf.IFNAME.forwarding": "1"}' '"sysctl": {"net.ipv4.ip_local_port_range": "20000 30000"}'; do
    for command in ADD CHECK; do
      if plugin $command "$settings" >answer; then echo "$settings, $command: succeeds"; else echo "$settings, $command: $(grep -oE 'current value is .*[^"]|no such file' answer)"; fi
    done
  done
} | tee seen
diff seen - <<'SEEN'
"mtu": 1400, ADD: succeeds
"mtu": 1400, CHECK: succeeds
"mac": "02:aa:bb:cc:dd:ee", ADD: succeeds
"mac": "02:aa:bb:cc:dd:ee", CHECK: succeeds
"mac": "02:AA:BB:CC:DD:EE", ADD: succeeds
"mac": "02:AA:BB:CC:DD:EE", CHECK: current value is 02:aa:bb:cc:dd:ee
"sysctl": {"net.ipv4.conf.eth0.forwarding": "1"}, ADD: succeeds
"sysctl": {"net.ipv4.conf.eth0.forwarding": "1"}, CHECK: succeeds
"sysctl": {"net.ipv4.conf.IFNAME.forwarding": "1"}, ADD: succeeds
"sysctl": {"net.ipv4.conf.IFNAME.forwarding": "1"}, CHECK: no such file
"sysctl": {"net.ipv4.ip_local_port_range": "20000 30000"}, ADD: succeeds
"sysctl": {"net.ipv4.ip_local_port_range": "20000 30000"}, CHECK: current value is 20000\t30000
SEEN
