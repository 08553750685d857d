#!/usr/bin/env bash
# Hooks of runc 1.1.5 and crun 1.8.1 of Debian 12 (root).
# A good guess: as in the runtime-spec, poststart runs after the program was started, and its failure is a warning; a hook has the environment its "env" gives it, or none;
# its input names the status and the process.
# What they do: runc runs poststart in `create`, when the program does not run yet, and its failure removes the container. crun runs it in `start`. A hook without "env"
# has the whole environment of whoever called the runtime; only runc's createContainer has the container's. crun tells createContainer that the process is 0.
set -euo pipefail
[ "${1:-}" = inside ] || exec unshare -m bash "$0" inside
umount /sys/fs/cgroup/unified 2>/dev/null || true # crun refuses to be where both versions are mounted
work=$(mktemp -d); cd "$work"
trap 'for runtime in crun runc; do $runtime --root "$work/$runtime.state" delete --force finding-$$ 2>/dev/null || true; done; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download runc=1.1.5+ds1-1+deb12u1 crun=1.8.1-1+deb12u1 libyajl2=2.1.0-3+deb12u2 busybox-static=1:1.35.0-4+deb12u1+b1
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu PATH=$work/usr/sbin:$work/usr/bin:$PATH CALLER=here

mkdir -p bundle/rootfs/{bin,proc,dev,sys}
cp bin/busybox bundle/rootfs/bin/sleep
runc spec --bundle bundle
sed -i 's/"terminal": true/"terminal": false/; s/"sh"$/"sleep", "1000"/' bundle/config.json
cp bundle/config.json plain.json
hook() { # hook KIND COMMAND: the bundle's only one
  python3 - "$@" <<'PYTHON'
import json
import sys

with open("plain.json") as file:
    config = json.load(file)
config["hooks"] = {sys.argv[1]: [{"path": "/bin/sh", "args": ["sh", "-c", sys.argv[2]]}]}
with open("bundle/config.json", "w") as file:
    json.dump(config, file)
PYTHON
}
for runtime in runc crun; do
  call() { $runtime --root "$work/$runtime.state" "$@"; }
  hook poststart "touch $work/ran"
  call create --bundle bundle finding-$$ >log 2>&1 </dev/null
  echo "$runtime, poststart after create: $(if [ -e ran ]; then echo ran; else echo did not run; fi)"
  call start finding-$$
  echo "$runtime, poststart after start: $(if [ -e ran ]; then echo ran; else echo did not run; fi)"
  call delete --force finding-$$; rm ran
  hook poststart "exit 1"
  if call create --bundle bundle finding-$$ >log 2>&1 </dev/null; then call start finding-$$ 2>/dev/null; echo "$runtime, poststart fails: started"; else echo "$runtime, poststart fails: not created"; fi
  call delete --force finding-$$
  for kind in createRuntime createContainer; do
    hook $kind "cat >$work/input; echo \${CALLER:-none} >$work/environment"
    call create --bundle bundle finding-$$ >log 2>&1 </dev/null
    echo "$runtime, $kind: CALLER $(cat environment), process $(grep -oE '"pid": ?[0-9]+' input | grep -oE '[0-9]+' | sed 's/^[0-9]\{2,\}/known/')"
    call delete --force finding-$$
  done
done | tee seen
diff seen - <<'SEEN'
runc, poststart after create: ran
runc, poststart after start: ran
runc, poststart fails: not created
runc, createRuntime: CALLER here, process known
runc, createContainer: CALLER none, process 1
crun, poststart after create: did not run
crun, poststart after start: ran
crun, poststart fails: started
crun, createRuntime: CALLER here, process known
crun, createContainer: CALLER here, process 0
SEEN
