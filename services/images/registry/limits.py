"""Limits on the bytes of answers, so that a registry cannot fill our memory. Time limits are in
registry_timeouts.py.
"""

from __future__ import annotations

MANIFEST_LIMIT = 4 << 20
"""Bytes of the largest manifest that is accepted. One with 128 layers has 32 KiB; large things belong into blobs."""

BLOB_LIMIT = 1 << 40
"""Bytes of the largest blob that is fetched. The largest layers in use, of models, have some 100 GiB."""

TOKEN_LIMIT = 1 << 20
"""Bytes of a token server's answer that are read."""

HEAD_LIMIT = 1 << 20
"""Bytes of an answer's head, including the 1xx answers before it."""

HEADERS = 10_000
"""Lines of a head: each costs a microsecond and some 200 bytes."""
