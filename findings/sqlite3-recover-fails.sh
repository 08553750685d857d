#!/usr/bin/env bash
# The shell of SQLite in Debian 12, sqlite3 3.40.1 (package sqlite3, unpacked in a temporary folder; needs libreadline8).
# A good guess: what sqlite.org says to do with a damaged database, `.recover`, works in a distribution's sqlite3, at least on a database that is whole.
# What it does: the virtual table by which .recover reads pages, sqlite_dbpage, is not compiled in. So it ends with "SQL logic error" after the first pragmas, whatever database it is given,
# and what is piped into another sqlite3 makes an empty database there.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get download -qq sqlite3 2>/dev/null
dpkg -x sqlite3_3.40.1-*.deb unpacked
sqlite3=unpacked/usr/bin/sqlite3
$sqlite3 whole "CREATE TABLE numbers (n); INSERT INTO numbers VALUES (1)"
$sqlite3 whole .recover 2>said | $sqlite3 saved 2>/dev/null || true
{
  cat said
  echo "whole: $($sqlite3 whole "SELECT count(*) FROM sqlite_schema") table"
  echo "saved: $($sqlite3 saved "SELECT count(*) FROM sqlite_schema") tables"
  $sqlite3 whole "SELECT 1 FROM sqlite_dbpage" 2>&1 | grep -o "no such table: sqlite_dbpage" || true
} | tee seen
diff seen - <<'SEEN'
sql error: SQL logic error (1)
whole: 1 table
saved: 0 tables
no such table: sqlite_dbpage
SEEN
