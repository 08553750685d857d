"""Follows which snapshotters the snapshots service announces, for as long as the gateway lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway import announced
from gateway.config import ProxyPlugin
from gateway.routes import Routes
from services.kit import errors
from services.kit.rpc import Call
from services.snapshots.remote import snapshotters
from services.snapshots.store import LASTING, About

log = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds that an announcement may take, and seconds until it is asked for again."""


class Snapshotters:
    """Asks the service ``snapshots`` whenever it comes, tells ``routes``, and keeps the answer below ``root``.
    ``proxies`` are strangers' snapshotters, beside its own or in their place.
    """

    def __init__(self, routes: Routes, root: Path, proxies: Mapping[str, ProxyPlugin] = {}) -> None:
        self._routes = routes
        self._root = root
        self._hop = routes["snapshots"]
        self._came = asyncio.Event()
        self._hop.changed.append(self._came.set)
        self._proxies = proxies
        self._known = announced.kept(root)
        if self._known:
            routes.know([each.name for each in self._known])

    def names(self) -> tuple[str, ...]:
        """Of those that it announced last."""
        return tuple(each.name for each in self._known)

    def lasting(self, name: str) -> bool:
        """Whether the mounts of a snapshotter last: it announces it, or the configuration says it of a stranger's."""
        proxy = self._proxies.get(name)
        if proxy is not None and proxy.type == "snapshot":
            return proxy.exports.get(LASTING) == "true"
        return any(each.exports.get(LASTING) == "true" for each in self._known if each.name == name)

    async def follow(self) -> None:
        """Ask each time that the service comes; for :func:`services.kit.loops.lasting`."""
        while True:
            await self._came.wait()
            self._came.clear()
            if not self._hop.home.up:
                continue
            try:
                await self._ask()
            except errors.Unimplemented:  # by an older release, which has those that are known
                continue
            except BaseException as error:
                self._came.set()
                if not isinstance(error, errors.NodeError):
                    raise
                log.warning("the snapshots service does not announce its snapshotters: %s", error)
                await asyncio.sleep(_PATIENCE)

    async def now(self, call: Call) -> Sequence[About]:
        """The announcement of now; the last one, if the service is away."""
        if self._hop.home.is_ready():
            try:
                await self._ask()
            except errors.NodeError as error:
                log.warning("the snapshots service does not say how its snapshotters are: %s", error)
        return self._known

    async def _ask(self) -> None:
        found = await snapshotters(self._hop.home.channel, _PATIENCE)
        if found != self._known:
            try:
                await asyncio.to_thread(announced.keep, self._root, found)
            except OSError as error:
                log.error("the announcement of the snapshotters cannot be stored: %s", errors.words_of_path(error))
            self._known = found
        self._routes.know([each.name for each in found], heard=True)
