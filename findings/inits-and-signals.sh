#!/usr/bin/env bash
# tini 0.19.0, dumb-init 1.2.5 and catatonit 0.1.7 of Debian 12, each as process 1 of a pid namespace (root): signals to it from outside, as of `kill -s` of a container engine.
# A good guess: each forwards every signal that can be caught; a command that is not found is exit status 127, and one that cannot be run 126.
# What they do: dumb-init forwards all of them. tini and catatonit do not forward SIGABRT, SIGSYS and the other signals of faults; nor do they die of them, being process 1, so nothing
# happens at all. Only tini says 127 and 126: dumb-init says 2, and catatonit 1.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download tini=0.19.0-1+b3 dumb-init=1.2.5-2 catatonit=0.1.7-1+b2
for package in *.deb; do dpkg -x "$package" .; done
cat >child <<'CHILD'
#!/bin/bash
for signal in TERM ABRT SYS RTMIN+3; do trap "echo $signal >>got" "$signal"; done
touch ready
until [ -e stop ]; do read -r -t 0.05 <>fifo || true; done
CHILD
chmod +x child; mkfifo fifo; touch plain
for init in tini dumb-init catatonit; do
  program=$(ls usr/bin/$init bin/$init 2>/dev/null | head -1 || true)
  for signal in TERM ABRT SYS RTMIN+3; do
    rm -f ready got stop
    unshare --pid --fork --kill-child "$program" -- ./child 2>/dev/null &
    until [ -e ready ]; do sleep 0.05; done
    kill -s "$signal" "$(pgrep -P $!)"
    for _ in $(seq 60); do [ -e got ] && break; sleep 0.05; done
    touch stop
    status=0; wait $! || status=$?
    echo "$init, $signal: $(cat got 2>/dev/null || echo nothing), exit status $status"
  done
  for command in ./missing ./plain; do
    status=0; unshare --pid --fork "$program" -- $command 2>/dev/null || status=$?
    echo "$init, $command: exit status $status"
  done
done | tee seen
diff seen - <<'SEEN'
tini, TERM: TERM, exit status 0
tini, ABRT: nothing, exit status 0
tini, SYS: nothing, exit status 0
tini, RTMIN+3: RTMIN+3, exit status 0
tini, ./missing: exit status 127
tini, ./plain: exit status 126
dumb-init, TERM: TERM, exit status 0
dumb-init, ABRT: ABRT, exit status 0
dumb-init, SYS: SYS, exit status 0
dumb-init, RTMIN+3: RTMIN+3, exit status 0
dumb-init, ./missing: exit status 2
dumb-init, ./plain: exit status 2
catatonit, TERM: TERM, exit status 0
catatonit, ABRT: nothing, exit status 0
catatonit, SYS: nothing, exit status 0
catatonit, RTMIN+3: RTMIN+3, exit status 0
catatonit, ./missing: exit status 1
catatonit, ./plain: exit status 1
SEEN
