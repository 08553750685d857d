#!/usr/bin/env bash
# SQLite 3.54.1 (apsw 3.54.1.0 from PyPI), WAL mode, on Linux.
# A good guess: reading a few bytes of DATABASE-shm, as of any file, changes nothing; the known rule of POSIX locks (a close drops them all) is told of the database file.
# What it does: the lock by which other processes see that the database is open is on byte 128 of -shm. Whoever opens and closes that file in the process that has the database open
# drops it, and the next process that opens the database takes it for a dead one's: it cuts -shm off, which the first one has mapped.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install apsw==3.54.1.0 2>/dev/null
cat >looker.py <<'PYTHON'
import fcntl
import struct

with open("database-shm", "r+b") as file:
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 128, 1, 0)
    kind, *_ = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, lock))
print("free" if kind == fcntl.F_UNLCK else "in use")
PYTHON
cat >owner.py <<'PYTHON'
import subprocess
import sys
import apsw


def look(when):
    print(when + ":", subprocess.check_output([sys.executable, "looker.py"], text=True).strip(), flush=True)


connection = apsw.Connection("database")
connection.execute("PRAGMA journal_mode = wal; CREATE TABLE numbers (n); INSERT INTO numbers VALUES (1)").fetchall()
look("open")
file = open("database-shm", "rb")
look("read beside")
file.close()
look("closed beside")
PYTHON
v/bin/python owner.py | tee seen
diff seen - <<'SEEN'
open: in use
read beside: in use
closed beside: free
SEEN
