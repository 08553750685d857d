"""Which backend has a thing of which metadata has no record, such as a task or a sandbox. Noted durably in a JSON file.

A thing's key is its namespace first and its name last.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

from gateway.store import Object, Objects
from services.kit import errors, files

log = logging.getLogger(__name__)

Key = tuple[str, ...]

_MOST = 64 << 20
"""Bytes of the file, at most."""


class Notes:
    """The notes in the file ``path``; ``kind`` is what one of the things is called."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._kind = kind
        self._lock = asyncio.Lock()
        self._backends = _read(path, kind)

    def __contains__(self, key: Key) -> bool:
        return key in self._backends

    def backend(self, key: Key) -> str:
        """The backend that has it; "" if it is not noted."""
        return self._backends.get(key, "")

    async def note(self, key: Key, backend: str) -> None:
        """Note which backend has it, durably; "" for none any more."""
        async with self._lock:
            if self.backend(key) == backend:
                return
            left = {**self._backends, key: backend}
            if not backend:
                del left[key]
            await self._keep(left)

    def objects(self, backend: str, limit: int = 0) -> Objects:
        """The things that a backend has."""
        found = [key for key, each in self._backends.items() if each == backend]
        some = [Object(key[0], self._kind, key[-1]) for key in found[:limit]]
        return Objects(noted=len(found), some=some)

    async def forget(self, backend: str) -> Objects:
        """Drop the notes of a backend: calls about its things go home."""
        dropped = self.objects(backend)
        async with self._lock:
            await self._keep({key: each for key, each in self._backends.items() if each != backend})
        return dropped

    async def _keep(self, backends: dict[Key, str]) -> None:
        data = json.dumps([[*key, backend] for key, backend in backends.items()])
        await asyncio.to_thread(files.replace, self._path, data)
        self._backends = backends


def _read(path: Path, kind: str) -> dict[Key, str]:
    """The notes. A file that cannot be read is put aside, and logged as an error."""
    try:
        if path.stat().st_size > _MOST:
            raise ValueError(f"it has more than {_MOST} bytes")
        return {tuple(map(str, key)): str(backend) for *key, backend in json.loads(path.read_bytes())}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        aside = path.with_name(f"{path.name}.damaged")
        log.error("%s does not say which candidate has which %s (it is now %s): %s", path, kind, aside, error)
        try:
            path.replace(aside)
        except OSError as failure:
            log.error("%s: %s", aside, errors.words(failure))
        return {}
