#!/usr/bin/env bash
# crun 1.8.1 and runc 1.1.5 of Debian 12 (root).
# A good guess: a signal may be named kill, KILL or SIGKILL, RTMIN+3 is one too (systemd's own in a container), and a name that is none is an error.
# What they do: crun takes a name that it does not know for signal 0: it sends nothing, and succeeds. So is it with "kill" in small letters, and with RTMIN+3. runc knows small letters,
# and no real-time signal, for which it fails. `crun exec --env` replaces the environment, PATH too, where runc's adds to it.
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
for name in sh sleep env; do ln -s busybox bundle/rootfs/bin/$name; done
runc spec --bundle bundle
sed -i 's/"terminal": true/"terminal": false/; s/"sh"$/"sh", "-c", "while true; do sleep 1; done"/' bundle/config.json
for runtime in runc crun; do
  call() { $runtime --root "$work/$runtime.state" "$@"; }
  call create --bundle bundle finding-$$ >log 2>&1 </dev/null
  call start finding-$$
  for signal in RTMIN+3 nonsense kill; do
    if call kill finding-$$ $signal 2>/dev/null; then answer=succeeds; else answer=fails; fi
    sleep 0.5
    echo "$runtime kill $signal: $answer, $(call state finding-$$ | grep -oE 'running|stopped')"
  done
  call delete --force finding-$$
  call create --bundle bundle finding-$$ >log 2>&1 </dev/null
  call start finding-$$
  echo "$runtime exec --env: $(call exec --env KEY=value finding-$$ /bin/env | grep -cE '^(KEY|PATH|TERM)=') of KEY, PATH and TERM"
  call delete --force finding-$$
done | tee seen
diff seen - <<'SEEN'
runc kill RTMIN+3: fails, running
runc kill nonsense: fails, running
runc kill kill: succeeds, stopped
runc exec --env: 3 of KEY, PATH and TERM
crun kill RTMIN+3: succeeds, running
crun kill nonsense: succeeds, running
crun kill kill: succeeds, running
crun exec --env: 1 of KEY, PATH and TERM
SEEN
