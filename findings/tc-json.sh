#!/usr/bin/env bash
# iproute2 6.1.0 of Debian 12 (root, in a network namespace of its own): `tc -j`, by which programs read what CNI's bandwidth plugin and others have set.
# A good guess: -j prints JSON for each kind of object, with the rate in bits a second, as the text has it and as it was given.
# What it does: a qdisc's rate is in bytes a second, and its latency in microseconds, without a unit. `tc -j class show` prints plain text for the classes of htb.
set -euo pipefail
if [ "${1:-}" != inside ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download iproute2=6.1.0-3 libbpf1=1:1.1.2-0+deb12u1 && for package in *.deb; do dpkg -x "$package" .; done)
  unshare --net bash "$0" inside "$work"
  exit
fi
work=$2; cd "$work"
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu PATH=$work/sbin:$work/usr/sbin:$work/bin:$PATH
ip link add one type veth peer name other; ip link set one up
{
  tc qdisc add dev one root handle 1: tbf rate 8mbit burst 32kb latency 50ms
  echo "text: $(tc qdisc show dev one)"
  echo "-j: $(tc -j qdisc show dev one)"
  tc qdisc replace dev one root handle 2: htb default 1
  tc class add dev one parent 2: classid 2:1 htb rate 8mbit ceil 8mbit quantum 1500
  echo "text: $(tc class show dev one)"
  echo "-j: $(tc -j class show dev one)"
} | tee seen
diff seen - <<'SEEN'
text: qdisc tbf 1: root refcnt 3 rate 8Mbit burst 32Kb lat 50ms 
-j: [{"kind":"tbf","handle":"1:","root":true,"refcnt":3,"options":{"rate":1000000,"burst":32768,"lat":50000}}]
text: class htb 2:1 root prio 0 rate 8Mbit ceil 8Mbit burst 1600b cburst 1600b 
-j: class htb 2:1 root prio 0 rate 8Mbit ceil 8Mbit burst 1600b cburst 1600b 
SEEN
