"""How many bytes of each kind of answer are read: a registry must not fill our memory. What a request may take of time
is in registry_timeouts.py.
"""

from __future__ import annotations

MANIFEST_LIMIT = 4 << 20
"""The largest manifest that is taken. One of 128 layers has 32 KiB; what is large belongs into blobs."""

TOKEN_LIMIT = 1 << 20
"""Bytes of a token server's answer that are read."""

HEAD_LIMIT = 1 << 20
"""Bytes of an answer's head, with those of the 1xx answers before it."""

HEADERS = 10_000
"""Lines of a head: each costs a microsecond and some 200 bytes."""
