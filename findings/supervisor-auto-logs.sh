#!/usr/bin/env bash
# supervisor 4.3.0: two supervisors of two configurations; neither names log files, an identifier or a childlogdir, so all are defaults.
# A good guess: each makes log files of its own (their names end at random), and removes its own when it starts again.
# What it does: at its start a supervisor removes all log files of that form in the folder for temporary files, also those that another supervisor's running programs write to. The programs
# go on, their output goes to files that are deleted; `supervisorctl tail` says "no log file".
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill $(cat ./*/pid) 2>/dev/null || true; rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install supervisor==4.3.0 setuptools==80.9.0 2>/dev/null
for name in first second; do
  mkdir $name
  cat >$name/conf <<CONF
[supervisord]
logfile = $work/$name/own.log
pidfile = $work/$name/pid
[unix_http_server]
file = $work/$name/s
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://$work/$name/s
[program:of-$name]
command = sh -c 'echo output of $name; exec sleep 1000'
CONF
done
mkdir tmp; export TMPDIR=$work/tmp
ctl() { v/bin/supervisorctl -c "$1/conf" "${@:2}" || true; }
tail_of() { echo "$1: $(ctl "$1" tail "of-$1")"; }
begin() { v/bin/supervisord -n -c "$1/conf" >/dev/null 2>&1 & for _ in $(seq 200); do ctl "$1" tail "of-$1" 2>/dev/null | grep -q output && break; sleep 0.1; done; }
{
  begin first; tail_of first
  begin second; echo "a second supervisor has started"
  tail_of first; tail_of second
  for _ in $(seq 100); do ctl first status | grep -q RUNNING && break; sleep 0.1; done
  echo "first: $(ctl first status | awk '{ print $2 }'), $(find "/proc/$(cat first/pid)/fd" -lname '*of-first-stdout*deleted*' | wc -l) log file open that is deleted"
  echo "files: $(find tmp -name '*-stdout-*' -printf '%f\n' | sed 's/supervisor-.*/.../' | tr '\n' ' ')"
} | tee seen
diff seen - <<'SEEN'
first: output of first
a second supervisor has started
first: of-first: ERROR (no log file)
second: output of second
first: RUNNING, 1 log file open that is deleted
files: of-second-stdout---... 
SEEN
