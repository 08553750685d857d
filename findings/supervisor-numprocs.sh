#!/usr/bin/env bash
# supervisor 4.3.0: the configuration of a running program gets one process more (numprocs), or one less, or another priority; then `supervisorctl update`.
# A good guess: the processes that stay go on, one is added or stopped. (The documentation: "Reload config and add/remove as necessary, and will restart affected programs".)
# What it does: it stops every process of the program, and starts all anew; so it does for a priority, which says nothing about a process that runs.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install supervisor==4.3.0 setuptools==80.9.0 2>/dev/null
conf() {
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
[program:sleeper]
command = sleep 1000
process_name = %(process_num)s
startsecs = 0
$1
CONF
}
ctl() { v/bin/supervisorctl -c conf "$@" || true; }
pids() { for _ in $(seq 100); do ctl status | grep -qvE 'RUNNING' || break; sleep 0.1; done; ctl pid sleeper:0; }
conf 'numprocs = 2'
v/bin/supervisord -n -c conf >/dev/null 2>&1 &
for _ in $(seq 200); do ctl status 2>/dev/null | grep -c RUNNING | grep -q 2 && break; sleep 0.1; done
before=$(pids)
{
  for change in 'numprocs = 3' 'numprocs = 1' $'numprocs = 1\npriority = 5' $'numprocs = 1\npriority = 5\n; a comment'; do
    conf "$change"
    echo "$(tr '\n' ' ' <<<"$change"): $(ctl update | tr '\n' ';')"
    after=$(pids)
    if [ "$before" = "$after" ]; then echo "  the first process goes on"; else echo "  the first process was started anew"; fi
    before=$after
  done
} | tee seen
diff seen - <<'SEEN'
numprocs = 3 : sleeper: stopped;sleeper: updated process group;
  the first process was started anew
numprocs = 1 : sleeper: stopped;sleeper: updated process group;
  the first process was started anew
numprocs = 1 priority = 5 : sleeper: stopped;sleeper: updated process group;
  the first process was started anew
numprocs = 1 priority = 5 ; a comment : 
  the first process goes on
SEEN
