#!/usr/bin/env bash
# containerd 1.6.20 and runc 1.1.5 of Debian 12 (root): `ctr run --rootfs`, and `ctr run --mount`.
# A good guess: a container that is run from a directory has the default PATH; a mount of type bind is a bind mount.
# What they do: without an image the container has no PATH, and no program is found by its name. A mount of type=bind is one only with options=bind or options=rbind; without options runc
# asks the kernel for a file system named "bind", and the error is "no such device".
set -euo pipefail
work=$(mktemp -d /tmp/f.XXXX); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; umount -l "$work"/state/*/*/*/rootfs 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download containerd=1.6.20~ds1-1+deb12u3 runc=1.1.5+ds1-1+deb12u1 busybox-static=1:1.35.0-4+deb12u1+b1
for package in *.deb; do dpkg -x "$package" .; done
mkdir -p image/bin source && cp bin/busybox image/bin/ls && ln image/bin/ls image/bin/env; touch source/file
cat >conf <<CONF
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$work/c.sock"
CONF
PATH="$work/usr/bin:$work/usr/sbin:$PATH" usr/bin/containerd -c conf >log 2>&1 &
until usr/bin/ctr -a c.sock version >/dev/null 2>&1; do sleep 0.1; done
run() { usr/bin/ctr -a "$work/c.sock" -n finding run --rm --rootfs "$@" 2>&1 | grep -oE '^[A-Z]+=.*|executable file not found|no such device|^file$' | tr '\n' ' '; }
{
  echo "env: $(run image one env)"
  echo "/bin/env: $(run image two /bin/env)"
  echo "type=bind: $(run --mount "type=bind,src=$work/source,dst=/mnt" image three /bin/ls /mnt)"
  echo "type=bind, options=bind: $(run --mount "type=bind,src=$work/source,dst=/mnt,options=bind" image four /bin/ls /mnt)"
} | tee seen
diff seen - <<'SEEN'
env: executable file not found 
/bin/env: HOME=/ 
type=bind: no such device 
type=bind, options=bind: file 
SEEN
