#!/usr/bin/env bash
# supervisor 4.3.0: the exit codes of supervisorctl where the answer is an error.
# A good guess: where it prints ERROR it fails.
# What it does: to start what runs, to stop what does not, and to add what is there print ERROR and succeed (0); to signal what does not run is 7, its status 3, a name it does not know 1, or 4 for status.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install supervisor==4.3.0 setuptools==80.9.0 2>/dev/null
cat >conf <<CONF
[supervisord]
logfile = $work/own.log
pidfile = $work/pid
[unix_http_server]
file = $work/s
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://$work/s
[program:on]
command = sleep 1000
startsecs = 0
[program:off]
command = sleep 1000
autostart = false
CONF
v/bin/supervisord -n -c conf >/dev/null 2>&1 &
ctl() { v/bin/supervisorctl -c conf "$@" 2>&1; }
for _ in $(seq 200); do ctl status on 2>/dev/null | grep -q RUNNING && break; sleep 0.1; done
{
  for question in "start on" "stop off" "add on" "signal HUP off" "status off" "start nobody" "status nobody"; do
    code=0; answer=$(ctl $question) || code=$?
    echo "$question: $code, $(grep -oE 'ERROR|STOPPED' <<<"$answer")"
  done
} | tee seen
diff seen - <<'SEEN'
start on: 0, ERROR
stop off: 0, ERROR
add on: 0, ERROR
signal HUP off: 7, ERROR
status off: 3, STOPPED
start nobody: 1, ERROR
status nobody: 4, ERROR
SEEN
