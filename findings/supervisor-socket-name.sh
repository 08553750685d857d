#!/usr/bin/env bash
# supervisor 4.3.0: the unix socket of its RPC server.
# A good guess: it is bound to the path the configuration names; so the kernel's list of sockets has that path, and it may have 107 bytes.
# What it does: it binds PATH.PID, makes PATH a hard link to that, and removes the first name. So /proc/net/unix and ss know the socket by a name that is not there, and the longest path
# that works is shorter by the dot and the number of the process, which is not the same each time.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install supervisor==4.3.0 setuptools==80.9.0 2>/dev/null
daemon() { # daemon PATH
  printf '[supervisord]\nlogfile = %s/log\npidfile = %s/pid\n[unix_http_server]\nfile = %s\n' "$work" "$work" "$1" >conf
  exec v/bin/supervisord -n -c conf
}
daemon "$work/socket" >/dev/null 2>&1 &
for _ in $(seq 200); do [ -S socket ] && break; sleep 0.1; done
{
  grep -o "$work/socket.*" /proc/net/unix | sed "s,$work/,the kernel's name: ,; s,$!,PID,"
  echo "in the directory: $(ls | grep socket)"
  long=$work/$(head -c $((107 - ${#work} - 1)) /dev/zero | tr '\0' s)
  python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1]); print("a path of", len(sys.argv[1]), "bytes: bound")' "$long"
  rm "$long"
  { (daemon "$long") 2>&1 || true; } | grep -o 'AF_UNIX path too long'
} | tee seen
diff seen - <<'SEEN'
the kernel's name: socket.PID
in the directory: socket
a path of 107 bytes: bound
AF_UNIX path too long
SEEN
