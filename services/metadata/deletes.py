"""Deletes many rows of the table ``records`` at little cost."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

DELETE = "DELETE FROM records WHERE key = ?"
RANGE = "DELETE FROM records WHERE key >= ? AND key < ?"
_BETWEEN = "SELECT key FROM records WHERE key >= ? AND key <= ? LIMIT ?"
_SOME = 128
"""Keys that one statement deletes by naming them: in large statements each key costs a quarter less, and Python's other
threads are let in less often.
"""
_DELETE_SOME = f"DELETE FROM records WHERE key IN ({','.join('?' * _SOME)})"  # noqa: S608 - nothing but question marks
_RUN, _OTHERS = 512, 16
"""Keys that are deleted as a range, if there is at most one other among so many of them: a key then costs half of one
that is named.
"""


def delete_keys(connection: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    """Delete the rows with these keys, in the open transaction; some may not exist."""
    left = sorted(keys)
    while len(left) >= _SOME and _delete_run(connection, left[:_RUN]):
        del left[:_RUN]
    whole = len(left) - len(left) % _SOME
    for start in range(0, whole, _SOME):
        connection.execute(_DELETE_SOME, left[start : start + _SOME])
    connection.executemany(DELETE, [(key,) for key in left[whole:]])


def _delete_run(connection: sqlite3.Connection, keys: Sequence[bytes]) -> bool:
    """Delete the rows with ``keys``, which are in order, as the ranges between the other rows there. If there are many
    others, nothing is deleted, and the result is False.
    """
    others = len(keys) // _OTHERS
    there = connection.execute(_BETWEEN, (keys[0], keys[-1], len(keys) + others + 1)).fetchall()
    staying = sorted({key for (key,) in there}.difference(keys))
    if len(there) > len(keys) + others or len(staying) > others:
        return False
    low = keys[0]
    for key in staying:
        connection.execute(RANGE, (low, key))
        low = key + b"\0"  # the next key that can exist
    connection.execute(RANGE, (low, keys[-1] + b"\0"))
    return True
