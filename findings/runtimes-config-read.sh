#!/usr/bin/env bash
# What runc 1.1.5 and crun 1.8.1 of Debian 12 make of the same config.json (root).
# A good guess: runc, the reference, refuses what the runtime-spec forbids, crun takes more; valid mounts are the same in both: "mode=1777" is the mode, and of "ro" and "rw" the later counts, as in mount(8).
# What they do: runc runs an ociVersion of 2.0.0, crun refuses it. crun takes two uts namespaces, a relative cwd, small letters in a capability, and a space in the id; runc
# refuses these, or leaves the capability out. runc gives a tmpfs the mode of the directory below it, whatever "mode" says; in crun "ro" counts also before "rw".
# A relative --root is below the working directory for runc, and for `crun create` below the bundle, where `crun state` does not look.
set -euo pipefail
[ "${1:-}" = inside ] || exec unshare -m bash "$0" inside
umount /sys/fs/cgroup/unified 2>/dev/null || true # crun refuses to be where both versions are mounted
work=$(mktemp -d); cd "$work"
trap 'for root in relative bundle/relative; do for runtime in crun runc; do $runtime --root "$work/$root" delete --force finding-$$ 2>/dev/null || true; done; done; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download runc=1.1.5+ds1-1+deb12u1 crun=1.8.1-1+deb12u1 libyajl2=2.1.0-3+deb12u2 busybox-static=1:1.35.0-4+deb12u1+b1
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu PATH=$work/usr/sbin:$work/usr/bin:$PATH

mkdir -p bundle/rootfs/{bin,proc,dev,sys,tmp}
chmod 755 bundle/rootfs/tmp
cp bin/busybox bundle/rootfs/bin/
for name in sh stat touch grep; do ln -s busybox bundle/rootfs/bin/$name; done
runc spec --bundle bundle
mv bundle/config.json plain.json
try() { # try NAME CHANGE COMMAND [ID]: run with the changed configuration under both
  python3 - "$2" "$3" <<'PYTHON'
import json
import sys

with open("plain.json") as file:
    config = json.load(file)
process = config["process"]
process["terminal"] = False
process["args"] = ["/bin/sh", "-c", sys.argv[2]]
exec(sys.argv[1])
with open("bundle/config.json", "w") as file:
    json.dump(config, file)
PYTHON
  for runtime in runc crun; do
    echo "$1: $runtime $($runtime --root "$work/$runtime.state" run --bundle bundle "finding-$$${4:-}" 2>/dev/null </dev/null || echo refuses)"
  done
}
{
  try "ociVersion 2.0.0" 'config["ociVersion"] = "2.0.0"' 'echo runs'
  try "two uts namespaces" 'config["linux"]["namespaces"].append({"type": "uts"})' 'echo runs'
  try "cwd tmp" 'process["cwd"] = "tmp"' 'echo runs in $PWD'
  try "cap_kill" 'process["capabilities"] = {kind: ["cap_kill"] for kind in ("bounding", "permitted", "effective")}' 'grep -o "CapEff.*[02]0$" /proc/self/status'
  try "an id with a space" '' 'echo runs' " 1"
  try "mode=1777" 'config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]})' 'stat -c %a /tmp'
  try "ro, rw" 'config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "rw"]})' 'touch /tmp/file && echo writes || echo cannot write'
  for runtime in runc crun; do
    $runtime --root relative create --bundle bundle finding-$$ >log 2>&1 </dev/null
    if $runtime --root relative state finding-$$ >/dev/null 2>&1; then echo "relative root: $runtime finds it"; else echo "relative root: $runtime does not find it"; fi
    $runtime --root relative delete --force finding-$$ 2>/dev/null || true
    $runtime --root "$work/bundle/relative" delete --force finding-$$ 2>/dev/null || true
  done
} | sed 's/\t/ /' | tee seen
diff seen - <<'SEEN'
ociVersion 2.0.0: runc runs
ociVersion 2.0.0: crun refuses
two uts namespaces: runc refuses
two uts namespaces: crun runs
cwd tmp: runc refuses
cwd tmp: crun runs in /tmp
cap_kill: runc CapEff: 0000000000000000
cap_kill: crun CapEff: 0000000000000020
an id with a space: runc refuses
an id with a space: crun runs
mode=1777: runc 755
mode=1777: crun 1777
ro, rw: runc writes
ro, rw: crun cannot write
relative root: runc finds it
relative root: crun does not find it
SEEN
