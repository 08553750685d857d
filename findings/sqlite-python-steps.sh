#!/usr/bin/env bash
# Python 3.11 (Debian 12's python3, SQLite 3.40.1), beside apsw 3.54.1.0 from PyPI.
# A good guess: execute("PRAGMA incremental_vacuum(100)").fetchall() gives back 100 pages, as in SQLite's shell.
# What it does: it gives back one. SQLite gives back a page in each step of the statement, and the sqlite3 module takes one step only of a statement that has no columns.
# executescript() takes all steps; so does apsw.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install apsw==3.54.1.0 2>/dev/null
cat >pages.py <<'PYTHON'
import sqlite3

import apsw


def free(connection):
    return connection.execute("PRAGMA freelist_count").fetchone()[0]


def given_back(connection, vacuum):
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL").fetchall()
    connection.execute("CREATE TABLE t (a)").fetchall()
    connection.execute("INSERT INTO t VALUES (zeroblob(4096 * 1000))").fetchall()
    connection.execute("DELETE FROM t").fetchall()
    before = free(connection)
    vacuum(connection)
    return before - free(connection)


VACUUM = "PRAGMA incremental_vacuum(100)"
print("sqlite3, execute:", given_back(sqlite3.connect("a", isolation_level=None), lambda c: c.execute(VACUUM).fetchall()))
print("sqlite3, executescript:", given_back(sqlite3.connect("b", isolation_level=None), lambda c: c.executescript(VACUUM)))
print("apsw:", given_back(apsw.Connection("c"), lambda c: c.execute(VACUUM).fetchall()))
PYTHON
v/bin/python pages.py | tee seen
diff seen - <<'SEEN'
sqlite3, execute: 1
sqlite3, executescript: 100
apsw: 100
SEEN
