#!/usr/bin/env bash
# runc 1.1.5 and crun 1.8.1 of Debian 12 (root): cwd and env of a config.json that differ from the usual.
# A good guess: a cwd that does not exist is an error, above all in a read-only root; an empty HOME stays empty; both refuse a variable without "=", or both take it; both know the
# names of capabilities by capital letters only.
# What they do: both make the missing cwd in the bundle's root file system, root.readonly or not, and leave it there. runc writes / over an empty HOME, and refuses a variable without
# "="; crun keeps the one, and leaves out the other. crun takes cap_kill for CAP_KILL, which runc drops with a warning.
set -euo pipefail
[ "${1:-}" = inside ] || exec unshare -m bash "$0" inside
umount /sys/fs/cgroup/unified 2>/dev/null || true # crun refuses to be where both versions are mounted
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download runc=1.1.5+ds1-1+deb12u1 crun=1.8.1-1+deb12u1 libyajl2=2.1.0-3+deb12u2 busybox-static=1:1.35.0-4+deb12u1+b1
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu PATH=$work/usr/sbin:$work/usr/bin:$PATH
mkdir -p bundle/rootfs/{bin,proc,dev,sys}
cp bin/busybox bundle/rootfs/bin/sh
runc spec --bundle bundle
mv bundle/config.json plain.json
run() { # run COMMAND CODE: the first container's output, with the configuration c changed by the Python code
  python3 -c 'import json, sys; c = json.load(open("plain.json")); p = c["process"]; p["terminal"] = False; p["args"] = ["sh", "-c", sys.argv[1]]; exec(sys.argv[2]); json.dump(c, open("bundle/config.json", "w"))' "$1" "$2"
  $runtime --root "$work/$runtime.state" run --bundle bundle finding-$$ </dev/null 2>errors || grep -oE 'invalid environment variable' errors || cat errors
}
for runtime in runc crun; do
  echo "$runtime, a missing cwd: $(run pwd 'c["root"]["readonly"] = True; p["cwd"] = "/not/there"'), left behind: $(cd bundle/rootfs && find not -type d | tail -1)"
  rm -r bundle/rootfs/not
  echo "$runtime, HOME=: $(run 'echo "[$HOME]"' 'p["env"].append("HOME=")')"
  echo "$runtime, HOME: $(run 'echo "[$HOME]"' 'p["env"].append("HOME")')"
  echo "$runtime, cap_kill: $(run 'while read -r line; do case $line in CapBnd*) echo "$line";; esac; done </proc/self/status' 'p["capabilities"] = {"bounding": ["cap_kill"]}' | tail -1)"
done | tee seen
diff seen - <<'SEEN'
runc, a missing cwd: /not/there, left behind: not/there
runc, HOME=: [/]
runc, HOME: invalid environment variable
runc, cap_kill: CapBnd:	0000000000000000
crun, a missing cwd: /not/there, left behind: not/there
crun, HOME=: []
crun, HOME: [/]
crun, cap_kill: CapBnd:	0000000000000020
SEEN
