#!/usr/bin/env bash
# conmon 2.1.6 of Debian 12 (root), podman's and CRI-O's watcher of a container, with runc 1.1.5: its file of a container's output.
# A good guess: --log-size-max keeps the last lines up to that size, or puts the full file aside; --log-path with a colon in the name writes to that name; a second --log-path writes a copy.
# What it does: a full file is emptied: of a hundred lines in 1000 bytes the last nine are left, which are 478 bytes. A name is cut at its second colon. Of two files
# only the last is written.
set -euo pipefail
[ "${1:-}" = inside ] || exec unshare -m bash "$0" inside
umount /sys/fs/cgroup/unified 2>/dev/null || true
work=$(mktemp -d); cd "$work"
trap 'runc --root "$work/state" delete --force finding-$$ 2>/dev/null || true; rm -rf --one-file-system "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download conmon=2.1.6+ds1-1 runc=1.1.5+ds1-1+deb12u1 busybox-static=1:1.35.0-4+deb12u1+b1 libglib2.0-0=2.74.6-2+deb12u9
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu PATH=$work/usr/sbin:$work/usr/bin:$PATH
mkdir -p bundle/rootfs/{bin,proc,dev,sys} sockets
cp bin/busybox bundle/rootfs/bin/
for name in sh seq; do ln -s busybox bundle/rootfs/bin/$name; done
runc spec --bundle bundle; mv bundle/config.json spec.json
watch() { # watch COMMAND OPTIONS: runs the command under conmon, and waits for its end
  rm -rf exits; mkdir exits
  python3 -c '
import json, sys
config = json.load(open("spec.json"))
config["process"].update(terminal=False, args=["sh", "-c", sys.argv[1]])
json.dump(config, open("bundle/config.json", "w"))' "$1"
  conmon -c finding-$$ -u finding-$$ -n name -r "$work/usr/sbin/runc" --runtime-arg=--root --runtime-arg="$work/state" -b "$work/bundle" -p "$work/pid" --exit-dir "$work/exits" \
    --socket-dir-path "$work/sockets" --sync "${@:2}" >conmon.log 2>&1 </dev/null &
  for _ in $(seq 100); do runc --root state state finding-$$ 2>/dev/null | grep -q created && break; sleep 0.1; done
  runc --root state start finding-$$
  wait
  runc --root state delete finding-$$
}
{
  watch 'for i in $(seq 100); do echo line $i; done' --log-path "$work/sized" --log-size-max 1000
  echo "--log-size-max: $(wc -l <sized) lines, from \"$(head -1 sized | cut -d' ' -f4-)\" to \"$(tail -1 sized | cut -d' ' -f4-)\"; files: $(ls sized*)"
  watch 'echo text' --log-path "k8s-file:$work/a:b"
  echo "k8s-file:a:b: $(ls -d a*)"
  watch 'echo text' --log-path "k8s-file:$work/first" --log-path "k8s-file:$work/second"
  for name in first second; do if [ -e $name ]; then echo "$name is there"; else echo "$name is not there"; fi; done
} | tee seen
diff seen - <<'SEEN'
--log-size-max: 9 lines, from "line 92" to "line 100"; files: sized
k8s-file:a:b: a
first is not there
second is there
SEEN
