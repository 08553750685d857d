#!/usr/bin/env bash
# aardvark-dns 1.4.0 of Debian 12 (root), podman's name server, asked for a container that is called web.
# A good guess: names of DNS know no case.
# What it does: WEB is found, as is web.dns.podman, with the search domain of podman's networks; WEB.dns.podman does not exist (NXDOMAIN). A resolver that varies the case of its
# questions, as a guard against forged answers, gets one answer or the other by chance.
set -euo pipefail
if [ "${1:-}" != inside ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download aardvark-dns=1.4.0-3 && dpkg -x aardvark-dns_*.deb .)
  unshare -n bash "$0" inside "$work"
  exit
fi
work=$2; cd "$work"
trap 'kill $(cat config/aardvark.pid) 2>/dev/null || true' EXIT

ip link set lo up
mkdir config
printf '127.0.0.1\nabc123 127.0.0.1  web\n' >config/podman
usr/lib/podman/aardvark-dns --config "$work/config" -p 5533 run >log 2>&1 &
python3 - <<'PYTHON' | tee seen
import socket
import struct

client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(1)
client.connect(("127.0.0.1", 5533))


def ask(name):
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + struct.pack(">BHH", 0, 1, 1)
    for _ in range(30):
        try:
            client.send(struct.pack(">HHHHHH", 1, 0x100, 1, 0, 0, 0) + question)
            _, flags, _, answers, _, _ = struct.unpack(">HHHHHH", client.recv(4096)[:12])
            return f"{['NOERROR', '', '', 'NXDOMAIN'][flags & 15]}, {answers} answers"
        except OSError:
            pass
    return "nothing"


for name in ("web", "WEB", "web.dns.podman", "WEB.dns.podman"):
    print(f"{name}: {ask(name)}")
PYTHON
diff seen - <<'SEEN'
web: NOERROR, 1 answers
WEB: NOERROR, 1 answers
web.dns.podman: NOERROR, 1 answers
WEB.dns.podman: NXDOMAIN, 0 answers
SEEN
