#!/usr/bin/env bash
# runc 1.1.5 and crun 1.8.1 of Debian 12 (root).
# A good guess: `exec` ends with 127 for a command that is not there and 126 for one that cannot be run, as shells do, and docker and podman on top of these; `update` of a container that has
# stopped fails, and so does one whose JSON has a text for a number.
# What they do: both end with 255, as for any error of their own, so that it cannot be told from a command that ends with 255. `crun update` of a stopped container succeeds, and so it does
# for {"memory": {"limit": "5m"}}, which changes nothing; runc refuses both.
set -euo pipefail
[ "${1:-}" = inside ] || exec unshare -m bash "$0" inside
umount /sys/fs/cgroup/unified 2>/dev/null || true # crun refuses to be where both versions are mounted
work=$(mktemp -d); cd "$work"
trap 'for runtime in crun runc; do $runtime --root "$work/$runtime.state" delete --force finding-$$ 2>/dev/null || true; done; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download runc=1.1.5+ds1-1+deb12u1 crun=1.8.1-1+deb12u1 libyajl2=2.1.0-3+deb12u2 busybox-static=1:1.35.0-4+deb12u1+b1
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu PATH=$work/usr/sbin:$work/usr/bin:$PATH

mkdir -p bundle/rootfs/{bin,proc,dev,sys}
cp bin/busybox bundle/rootfs/bin/
for name in sh sleep; do ln -s busybox bundle/rootfs/bin/$name; done
touch bundle/rootfs/not-executable
runc spec --bundle bundle
sed -i 's/"terminal": true/"terminal": false/; s/"sh"$/"sh", "-c", "while true; do sleep 1; done"/' bundle/config.json
for runtime in runc crun; do
  call() { $runtime --root "$work/$runtime.state" "$@"; }
  status() { local status=0; call "$@" >answer 2>&1 </dev/null || status=$?; echo "$status"; }
  call create --bundle bundle finding-$$ >log 2>&1 </dev/null
  call start finding-$$
  echo "$runtime exec: not there $(status exec finding-$$ /bin/missing), not executable $(status exec finding-$$ /not-executable), exit 255 $(status exec finding-$$ sh -c 'exit 255')"
  echo "$runtime exec: killed $(status exec finding-$$ sh -c 'kill -9 $$')"
  echo '{"memory": {"limit": "5m"}}' >limit.json
  echo "$runtime update, a text for a number: $(status update --resources limit.json finding-$$)"
  call kill finding-$$ KILL
  for _ in $(seq 100); do call state finding-$$ | grep -q stopped && break; sleep 0.1; done
  echo "$runtime update, stopped: $(status update --pids-limit 5 finding-$$)"
  call delete finding-$$
done | tee seen
diff seen - <<'SEEN'
runc exec: not there 255, not executable 255, exit 255 255
runc exec: killed 137
runc update, a text for a number: 1
runc update, stopped: 1
crun exec: not there 255, not executable 255, exit 255 255
crun exec: killed 137
crun update, a text for a number: 0
crun update, stopped: 0
SEEN
