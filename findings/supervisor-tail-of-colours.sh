#!/usr/bin/env bash
# supervisor 4.3.0: a program prints a colour (ESC), another one a byte that is not UTF-8. Then `supervisorctl tail`, and `supervisorctl clear`.
# A good guess: tail shows the end of the log, and clear makes it empty.
# What it does: tail ends with an exception: the text goes through XML-RPC unescaped, where ESC is not allowed, and the other byte is "500 Internal Server Error".
# clear of a program that has ended says "cleared", and leaves the log as it is: only a running program's log is emptied.
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
[program:plain]
command = printf 'plain\n'
[program:colour]
command = printf '\033[31mred\033[0m\n'
[program:byte]
command = printf 'caf\351\n'
CONF
for program in plain colour byte; do
  sed -i "/^\[program:$program\]/a startsecs = 0\nautorestart = false\nstdout_logfile = $work/$program.log" conf
done
ctl() { v/bin/supervisorctl -c conf "$@" 2>&1 || true; }
v/bin/supervisord -n -c conf >/dev/null 2>&1 &
for _ in $(seq 200); do [ "$(ctl status | grep -c EXITED)" = 3 ] && break; sleep 0.1; done
{
  for program in plain colour byte; do
    echo "tail $program: $(ctl tail $program | grep . | grep -oE "plain|ExpatError'>, not well-formed|500 Internal Server Error" | head -1)"
  done
  ctl clear plain
  echo "in the log: $(cat plain.log)"
} | tee seen
diff seen - <<'SEEN'
tail plain: plain
tail colour: ExpatError'>, not well-formed
tail byte: 500 Internal Server Error
plain: cleared
in the log: plain
SEEN
