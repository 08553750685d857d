"""Identifiers: names of namespaces, containers and the like, safe as a component of a path.

containerd's rule: runs of ASCII letters and digits joined by single ``.``, ``_`` or ``-``, at most 76 bytes. The
messages are containerd's.
"""

from __future__ import annotations

import json
import re

from services.kit import errors

MAX_LENGTH = 76
PATTERN = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
_match = re.compile(PATTERN, re.ASCII).fullmatch


def quoted(text: str) -> str:
    """``text`` in double quotes, escaped as in containerd's messages (Go's %q)."""
    return json.dumps(text, ensure_ascii=False)


def validate(identifier: str) -> None:
    """Raise InvalidArgument unless ``identifier`` is valid."""
    if not identifier:
        raise errors.InvalidArgument("identifier must not be empty")
    if len(identifier.encode()) > MAX_LENGTH:
        raise errors.InvalidArgument(
            f"identifier {quoted(identifier)} greater than maximum length ({MAX_LENGTH} characters)"
        )
    if not _match(identifier):
        raise errors.InvalidArgument(f"identifier {quoted(identifier)} must match {PATTERN}")
