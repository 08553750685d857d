#!/usr/bin/env bash
# crun 1.8.1 and runc 1.1.5 of Debian 12 (root), on cgroups of version 1: SIGKILL for a paused container. (With version 2 the kernel itself thaws for SIGKILL.)
# A good guess: it dies, under both.
# What they do: runc thaws the container after the signal, and it dies. crun says that all is well and leaves it frozen: the signal waits until somebody resumes it, which is
# also the only way to delete it without --force.
set -euo pipefail
[ "${1:-}" = inside ] || exec unshare -m bash "$0" inside
umount /sys/fs/cgroup/unified 2>/dev/null || true # crun refuses to be where both versions are mounted
[ -d /sys/fs/cgroup/freezer ] || { echo "cgroups of version 1 are not mounted"; exit 1; }
work=$(mktemp -d); cd "$work"
trap 'for runtime in crun runc; do $runtime --root "$work/$runtime.state" resume finding-$$ 2>/dev/null || true; $runtime --root "$work/$runtime.state" delete --force finding-$$ 2>/dev/null || true; done; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download runc=1.1.5+ds1-1+deb12u1 crun=1.8.1-1+deb12u1 libyajl2=2.1.0-3+deb12u2 busybox-static=1:1.35.0-4+deb12u1+b1
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu PATH=$work/usr/sbin:$work/usr/bin:$PATH

mkdir -p bundle/rootfs/{bin,proc,dev,sys}
cp bin/busybox bundle/rootfs/bin/sleep
runc spec --bundle bundle
sed -i 's/"terminal": true/"terminal": false/; s/"sh"$/"sleep", "1000"/' bundle/config.json
for runtime in runc crun; do
  call() { $runtime --root "$work/$runtime.state" "$@"; }
  state() { call state finding-$$ | grep -oE '"(paused|running|stopped)"'; }
  call create --bundle bundle finding-$$ >log 2>&1 </dev/null
  call start finding-$$
  call pause finding-$$
  call kill finding-$$ KILL
  sleep 2
  echo "$runtime, killed: $(state)"
  call resume finding-$$ 2>/dev/null || true
  sleep 1
  echo "$runtime, resumed: $(state)"
  call delete finding-$$
done | tee seen
diff seen - <<'SEEN'
runc, killed: "stopped"
runc, resumed: "stopped"
crun, killed: "paused"
crun, resumed: "stopped"
SEEN
