#!/usr/bin/env bash
# supervisor 4.3.0: a " #" within a value. Its documentation knows one comment behind a value: " ;".
# A good guess: "#" is a part of the value.
# What it does: all from " #" on is left out, within quotes too: a command with quotes then cannot be parsed and the program is FATAL, one without runs with fewer arguments,
# and an environment variable is shorter.
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
[program:quoted]
command = sh -c 'echo one # two'
startretries = 0
[program:plain]
command = echo one # two
startsecs = 0
autorestart = false
stdout_logfile = $work/plain.log
[program:variable]
command = sh -c 'echo \$KEY'
environment = KEY=one # two
startsecs = 0
autorestart = false
stdout_logfile = $work/variable.log
CONF
v/bin/supervisord -n -c conf >/dev/null 2>&1 &
states() { v/bin/supervisorctl -c conf status 2>&1 || true; }
for _ in $(seq 200); do [ "$(states | grep -cE 'EXITED|FATAL')" = 3 ] && break; sleep 0.1; done
{
  states | awk '{ print $1, $2 }'
  echo "plain: $(cat plain.log)"
  echo "variable: $(cat variable.log)"
} | tee seen
diff seen - <<'SEEN'
plain EXITED
quoted FATAL
variable EXITED
plain: one
variable: one
SEEN
