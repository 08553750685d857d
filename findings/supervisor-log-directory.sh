#!/usr/bin/env bash
# supervisor 4.3.0: a program that is to be restarted ends while the directory of its log file is gone.
# A good guess: it is started again, and its output is lost; or supervisord makes the directory anew.
# What it does: it does not start it. "unknown error making dispatchers", a few tries, then FATAL for good: also when the directory is there again.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install supervisor==4.3.0 setuptools==80.9.0 2>/dev/null
mkdir logs
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
autorestart = true
startsecs = 0
stdout_logfile = $work/logs/out
stderr_logfile = $work/logs/err
CONF
state() { v/bin/supervisorctl -c conf status sleeper | awk '{ print $2 }' || true; }
reaches() { for _ in $(seq 200); do [ "$(state)" = "$1" ] && break; sleep 0.1; done; state; }

v/bin/supervisord -n -c conf >/dev/null 2>&1 &
{
  echo "at first: $(reaches RUNNING)"
  rm -r logs
  kill "$(v/bin/supervisorctl -c conf pid sleeper)"
  echo "ended without the directory: $(reaches FATAL)"
  mkdir logs
  sleep 3
  echo "the directory is there again: $(state)"
  grep -o 'spawnerr: .*' own.log | sort -u
} | tee seen
diff seen - <<'SEEN'
at first: RUNNING
ended without the directory: FATAL
the directory is there again: FATAL
spawnerr: unknown error making dispatchers for 'sleeper': ENOENT
SEEN
