"""One service behind the gateway, which may be down.

A call to it first asks :meth:`Upstream.ready`, which answers at once while the service is connected. If the service
went away a moment ago, the call is held until it is back: for ``hold`` seconds after the loss, or until the call's
deadline, whichever is first. If the service was stopped on purpose, or has been away for longer, the call fails at once
with UNAVAILABLE and the service's name. So a sick service costs its own callers little, and nobody else anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from gateway.instruments import Instruments
from gateway.supervision import Supervision
from services.kit import errors, loops, tracing
from services.kit.addresses import Address
from services.kit.addresses import address as as_address
from services.kit.rpc import HOPS, LEASE, MOST_HOPS, Call, Channel

log = logging.getLogger(__name__)


def onward(call: Call, hop: str) -> dict[str, str | bytes]:
    """The headers with which a call leaves by a hop: the client's, and how many gateways it has come through.
    FailedPrecondition if these are too many, as where a service forwards what it gets to a gateway that leads to it.
    """
    headers = call.passed_on()
    said = str(headers.get(HOPS, "0"))
    passed = int(said) if said.isascii() and said.isdigit() and len(said) < 4 else MOST_HOPS
    if passed >= MOST_HOPS:
        route = hop.partition("@")[0]
        raise errors.FailedPrecondition(
            f"route {route} leads in a circle: this call has come through {MOST_HOPS} gateways already, so a service "
            f"behind it forwards calls to a gateway again (splitd routes shows the services of {route})"
        )
    headers[HOPS] = str(passed + 1)
    return headers


def raw_headers(call: Call, hop: str) -> dict[str, str | bytes]:
    """:func:`onward`, for a raw service: never with the lease."""
    headers = onward(call, hop)
    headers.pop(LEASE, None)
    return headers


_ASKED, _ASKED_ON = 2.0, 60.0
"""Seconds in which a service may say what it is: before calls go to it, and when it is asked again."""
_PAUSE = 5.0
"""Seconds until it is asked again."""


class Upstream:
    """The service ``name`` at ``address``; supervisord calls its process ``program`` ("" for a foreign one)."""

    def __init__(
        self,
        name: str,
        address: Path | str | Address,
        program: str,
        supervision: Supervision,
        *,
        hold: float,
        refused: Callable[[float], Awaitable[str | None]] | None = None,
        asked: float = _ASKED,
    ) -> None:
        """``refused`` is asked of each new connection before the first call goes to it: why what is there cannot be
        the service, or an empty string; None if it has not answered within so many seconds, which are ``asked`` at
        first. Calls go to one that does not answer, until it has. What is refused is down, for that reason.
        """
        self.name = name
        self.program = program
        self.address = str(address)
        self.local = bool(as_address(address).path)
        """Whether it is on this machine, so that the paths of files that it answers mean something here."""
        self.channel = Channel(address, name, pings="always" if program else "never")
        self.instruments = Instruments(self.channel)
        """What stands around its calls."""
        self.hold = hold
        self.on_connect: list[Callable[[], None]] = []
        self._supervision = supervision
        self._up = asyncio.Event()
        self._since = time.monotonic()
        self._stopped_checked = 0.0
        self._stopped = False
        self._watching: asyncio.Task[None] | None = None
        self._retired = ""
        self._ask = refused
        self._asked = asked
        self._asking: asyncio.Task[None] | None = None
        """The question that has not been answered in time."""
        self._refused = ""

    @property
    def up(self) -> bool:
        """Whether it is connected."""
        return self._up.is_set()

    @property
    def retired(self) -> bool:
        """Whether nobody is to call it any more."""
        return bool(self._retired)

    @property
    def down_seconds(self) -> float:
        """Seconds that it has been away; 0.0 while it is there."""
        return 0.0 if self.up else time.monotonic() - self._since

    def trouble(self) -> str:
        """Why it cannot be used now, or an empty string."""
        if self.up:
            return ""
        if self._retired:
            return self._retired
        if self._refused:
            return self._refused
        if self._stopped:
            return f"service {self.name} is stopped"
        return f"service {self.name} has been unreachable for {self.down_seconds:.1f} s{self._why()}"

    def _why(self) -> str:
        """Why a foreign service cannot be reached, in brackets. One of ours has its log, and ``splitd status``."""
        return f" ({self.channel.trouble})" if not self.program and self.channel.trouble else ""

    async def watch(self) -> None:
        """Keep the connection, and note whether it is there; for :func:`services.kit.loops.lasting`. When this is
        cancelled, it closes the connection.
        """
        self._watching = asyncio.current_task()
        try:
            async for connected in self.channel.connections():
                if connected and not self.up:
                    if await self._is_refused():
                        continue
                    log.info("service %s is there", self.name)
                    self._stopped = False
                    self._up.set()
                    for callback in self.on_connect:
                        callback()
                elif self.up and not connected:
                    log.warning("service %s went away", self.name)
                    self._went_away()
                elif not connected:
                    self._refused = ""
                    self._forget_question()
        except asyncio.CancelledError:
            await self.channel.close()
            raise
        finally:
            self._forget_question()
            if self.up:  # nobody would see it go any more; the next watch sees it come
                self._went_away()

    async def _is_refused(self) -> bool:
        """Whether it says at once that it is something else; if it says nothing, it is asked on."""
        if self._ask is None:
            return False
        self._forget_question()
        said = await self._ask(self._asked)
        self._refuse(said or "")
        if said is None:
            self._asking = loops.aside(f"the question what service {self.name} is", self._told(self._ask))
        return bool(said)

    async def _told(self, ask: Callable[[float], Awaitable[str | None]]) -> None:
        said = await ask(_ASKED_ON)
        while said is None:
            await asyncio.sleep(_PAUSE)
            said = await ask(_ASKED_ON)
        if said and self.up:
            self._refuse(said)
            self._went_away()

    def _refuse(self, reason: str) -> None:
        self._refused = reason
        if reason:
            log.warning("service %s is not used: %s", self.name, reason)

    def _forget_question(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    async def connected(self, seconds: float) -> None:
        """Return once it is connected, or after some time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._up.wait()

    def retire(self, reason: str) -> None:
        """Nobody is to call it any more: calls that do fail at once, for ``reason``, and its connection is closed."""
        self._retired = reason
        if self._watching is not None:
            self._watching.cancel()

    def _went_away(self) -> None:
        self._since = time.monotonic()
        self._up.clear()

    def is_ready(self) -> bool:
        """Whether a call can go to it now."""
        return self._up.is_set() and self.channel.connected()

    async def ready(self, call: Call | None = None) -> Channel:
        """The channel, as soon as the service is there; Unavailable, naming it, if it does not come in time."""
        if self.is_ready():
            return self.channel
        with tracing.wait("lock", **{"splitd.wait.for": f"service {self.name}, which is away"}):
            return await self._back(call)

    async def _back(self, call: Call | None) -> Channel:
        end = time.monotonic() + self.hold if self.up else self._since + self.hold
        if call is not None and call.deadline is not None:
            end = min(end, call.deadline - 0.05)
        while not self.is_ready():
            if self._retired:
                raise errors.Unavailable(self._retired)
            if self._refused:
                raise errors.Unavailable(f"service {self.name} is not used: {self._refused}")
            if await self._stopped_on_purpose():
                raise errors.Unavailable(
                    f"service {self.name} is stopped (start it with: splitd restart {self.program})"
                )
            left = end - time.monotonic()
            if left <= 0:
                raise errors.Unavailable(
                    f"service {self.name} has been unreachable for {self.down_seconds:.0f} s{self._why()}"
                )
            if self._up.is_set():
                await asyncio.sleep(0.01)  # the watcher has not seen the loss yet
                continue
            try:
                async with asyncio.timeout(min(left, 0.5)):
                    await self._up.wait()
            except TimeoutError:
                continue
        return self.channel

    async def _stopped_on_purpose(self) -> bool:
        if self.program and time.monotonic() - self._stopped_checked > 0.3:
            self._stopped_checked = time.monotonic()
            self._stopped = await self._supervision.stopped(self.program)
        return self._stopped
