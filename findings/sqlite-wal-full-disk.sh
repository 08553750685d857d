#!/usr/bin/env bash
# SQLite 3.54.1 (apsw 3.54.1.0 from PyPI), WAL mode, on a small tmpfs (root) that becomes full.
# A good guess: a database that was closed cleanly can be read on a full disk, and one whose owner was killed needs recovery, and with it room.
# What it does: the other way round. The clean close removes the -wal and -shm files, and whoever only reads must make -shm again, which fails: "disk I/O error". After a kill both
# are there, and all can be read.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount "$work/disk" 2>/dev/null || true; rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install apsw==3.54.1.0 2>/dev/null
cat >owner.py <<'PYTHON'
import os
import signal
import sys
import apsw

connection = apsw.Connection("disk/database")
connection.execute("PRAGMA journal_mode = wal; CREATE TABLE numbers (n); INSERT INTO numbers VALUES (1)").fetchall()
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
connection.close()
PYTHON
cat >reader.py <<'PYTHON'
import sys
import apsw

try:
    print(sys.argv[1] + ":", apsw.Connection("disk/database").execute("SELECT * FROM numbers").fetchall())
except apsw.Error as error:
    print(sys.argv[1] + ":", type(error).__name__)
PYTHON
mkdir disk
for end in closed killed; do
  mount -t tmpfs -o size=2M none disk
  { v/bin/python owner.py $end || true; } 2>/dev/null
  dd if=/dev/zero of=disk/filler bs=4k 2>/dev/null || true
  v/bin/python reader.py $end
  umount disk
done | tee seen
diff seen - <<'SEEN'
closed: IOError
killed: [(1,)]
SEEN
