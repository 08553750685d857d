#!/usr/bin/env bash
# CNI's portmap and bridge plugins 1.1.1 of Debian 12, with iptables 1.8.9 (root; in namespaces of its own): two containers with one and the same port of the host.
# A good guess: ADD of the second container fails, since its port is taken; CHECK right after ADD succeeds; CHECK of the bridge finds that the bridge has lost the gateway's address.
# What they do: ADD of the second succeeds, and the first container keeps getting the connections; only after its DEL the second gets them. CHECK of portmap fails for each container without an
# IPv6 address: it looks for the rules of IPv6, which ADD does not make for it. CHECK of bridge succeeds without the gateway's address.
set -euo pipefail
if [ "${1:-}" != inside ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  (
    cd "$work"
    apt-get -qq -o APT::Sandbox::User=root download containernetworking-plugins=1.1.1+ds1-3+b5 iptables=1.8.9-2 libip4tc2=1.8.9-2 libip6tc2=1.8.9-2 libxtables12=1.8.9-2 libnftnl11=1.2.4-2 \
      libnfnetlink0=1.0.2-2 libmnl0=1.0.4-3 libnetfilter-conntrack3=1.0.9-3
    for package in *.deb; do dpkg -x "$package" .; done
    for name in iptables ip6tables; do ln -sf $name-nft usr/sbin/$name; done
  )
  unshare --net --mount --pid --fork --mount-proc bash "$0" inside "$work"
  exit
fi
work=$2; cd "$work"
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu XTABLES_LIBDIR=$work/usr/lib/x86_64-linux-gnu/xtables PATH=$work/usr/sbin:$PATH
ip link set lo up
plugin() { # plugin TYPE COMMAND CONTAINER SETTINGS
  printf '{"cniVersion": "1.0.0", "name": "net", "type": "%s", %s}' "$1" "$4" |
    CNI_COMMAND=$2 CNI_CONTAINERID=$3 CNI_IFNAME=eth0 CNI_NETNS=$work/$3.net CNI_PATH=usr/lib/cni usr/lib/cni/"$1" >answer
}
said() { if plugin "$@"; then echo "succeeds"; else grep -oE 'could not check ipv6 dnat|already|in use' answer; fi; }
bridge="\"bridge\": \"bridge0\", \"isGateway\": true, \"ipam\": {\"type\": \"host-local\", \"dataDir\": \"$work/data\", \"ranges\": [[{\"subnet\": \"10.99.0.0/24\"}]]}"
ports='"capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'
for name in first second; do
  touch $name.net; unshare --net=$work/$name.net true
  plugin bridge ADD $name "$bridge"; cp answer $name.result
  nsenter --net=$work/$name.net python3 -c '
import socket, sys
server = socket.create_server(("", 80))
while True:
    connection, _ = server.accept()
    connection.sendall(sys.argv[1].encode())
    connection.close()' $name &
  for _ in $(seq 100); do nsenter --net=$work/$name.net ss -ltn | grep -q ':80 ' && break; sleep 0.1; done
done
reached() { python3 -c 'import socket; print(socket.create_connection(("10.99.0.1", 8080), 10).recv(100).decode())'; }
with_result() { echo "$2, \"prevResult\": $(cat "$1.result")"; }
{
  for name in first second; do
    echo "portmap, ADD of the $name: $(said portmap ADD $name "$(with_result $name "$ports")"), CHECK: $(said portmap CHECK $name "$(with_result $name "$ports")")"
    echo "port 8080 reaches the $(reached)"
  done
  plugin portmap DEL first "$ports"
  echo "the first is deleted: port 8080 reaches the $(reached)"
  ip address flush dev bridge0
  echo "bridge, CHECK without the gateway's address: $(said bridge CHECK second "$(with_result second "$bridge")")"
} | tee seen
kill %1 %2
diff seen - <<'SEEN'
portmap, ADD of the first: succeeds, CHECK: could not check ipv6 dnat
port 8080 reaches the first
portmap, ADD of the second: succeeds, CHECK: could not check ipv6 dnat
port 8080 reaches the first
the first is deleted: port 8080 reaches the second
bridge, CHECK without the gateway's address: succeeds
SEEN
