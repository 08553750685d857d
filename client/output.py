"""How a transfer is shown while it runs: as bars on a terminal, as lines of JSON for a program, or not at all.

A line of JSON is one object, ended by a newline. While the transfer runs, each line describes a part that has changed::

    {"name": "layer-sha256:...", "digest": "sha256:...", "stage": "downloading", "bytes": 1048576, "total": 4194304,
        "rate": 524288.0}

- ``bytes`` counts within the stage, and never decreases within it.
- ``total`` is 0 if it is not known.
- ``rate`` is in bytes a second.
- ``stage`` is waiting, downloading (or uploading; for an archive sending or receiving), downloaded, extracting or done;
  or exists, if the blob was there already: in the node, in the registry, or in another of its repositories.

A line without a name says what the transfer is ``waiting`` for, in words. It has the ``cause`` (host, pause, token,
client, lock or budget), the ``host``, if one is waited for, and the ``seconds`` so far; ``silent`` is the host again if
it has sent nothing for so long.

The last line has the ``outcome``: done, failed (with the ``error``), or cancelled. If a pull brought a manifest for
none of the wanted platforms, ``otherPlatforms`` lists its platforms. For an import, ``images`` lists the stored images,
and ``notImported`` lists those for other ``platforms``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, TextIO

from client import bars
from client.progress import Part, Tally
from client.screen import Screen
from client.shown import complain, say
from services.images.waits import BUDGET, HOST, LOCK, Wait
from services.kit import loops

FRAME_SECONDS = 0.1
WAIT_SECONDS = 10
"""Seconds from one line about a wait to the next."""
LONG = {HOST: 5, BUDGET: 10, LOCK: 10}
"""Seconds from which a wait is worth a line that stays; 2 for other causes."""


class Output(Protocol):
    """The interface to show a transfer."""

    def running(self, tally: Tally) -> contextlib.AbstractAsyncContextManager[None]:
        """Show the transfer while the block lasts, and leave its final state."""
        ...

    def changed(self, part: Part) -> None:
        """A part has changed."""
        ...

    def waits(self, wait: Wait) -> None:
        """The transfer waits."""
        ...

    def ended(self, outcome: Mapping[str, Any]) -> None:
        """The outcome, for programs."""
        ...

    def said(self, line: str) -> None:
        """The result, for people."""
        ...


class Lines:
    """Prints only the result, and on standard error what is waited for if that takes long. With ``quiet`` it prints
    neither.
    """

    def __init__(self, file: TextIO, *, quiet: bool = False) -> None:
        self._file = file
        self._quiet = quiet
        self._waits: dict[tuple[str, str], float] = {}
        """When a wait was last told, by its cause and host: after how many of its seconds."""

    @contextlib.asynccontextmanager
    async def running(self, tally: Tally) -> AsyncIterator[None]:
        yield

    def changed(self, part: Part) -> None:
        pass

    def waits(self, wait: Wait) -> None:
        if not self._quiet and self._is_news(wait):
            complain(wait.words)

    def _is_news(self, wait: Wait) -> bool:
        """Whether a line about the wait is due."""
        if max(wait.seconds, wait.lasts) < LONG.get(wait.cause, 2):
            return False
        at = self._waits.get((wait.cause, wait.host))
        if at is not None and at <= wait.seconds < at + WAIT_SECONDS:
            return False
        self._waits[wait.cause, wait.host] = wait.seconds
        return True

    def ended(self, outcome: Mapping[str, Any]) -> None:
        pass

    def said(self, line: str) -> None:
        if not self._quiet:
            say(line, file=self._file)


class Json(Lines):
    """Prints a line of JSON for each change."""

    def __init__(self, file: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(file, quiet=True)
        self._clock = clock

    def changed(self, part: Part) -> None:
        self._put(
            {
                "name": part.name,
                "digest": part.digest,
                "stage": str(part.stage),
                "bytes": part.bytes,
                "total": part.total,
                "rate": round(part.rate_at(self._clock()), 1),
            }
        )

    def waits(self, wait: Wait) -> None:
        if self._is_news(wait):
            self._put(
                {
                    "waiting": wait.words,
                    "cause": wait.cause,
                    "host": wait.host,
                    "seconds": wait.seconds,
                    **({"silent": wait.host} if wait.cause == HOST else {}),
                }
            )

    def ended(self, outcome: Mapping[str, Any]) -> None:
        self._put(outcome)

    def _put(self, value: Mapping[str, Any]) -> None:
        print(json.dumps(value), file=self._file, flush=True)


class Bars(Lines):
    """Draws bars on a terminal, ten times a second, below ``title``."""

    def __init__(self, file: TextIO, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(file)
        self._title = title
        self._clock = clock
        self._screen = Screen(self._write)

    @contextlib.asynccontextmanager
    async def running(self, tally: Tally) -> AsyncIterator[None]:
        async def frames() -> None:
            while True:
                self._draw(tally)
                await asyncio.sleep(FRAME_SECONDS)

        try:
            async with loops.running("the drawing of bars", frames):
                yield
        finally:
            self._screen.finish(bars.final(tally, self._size()[0]))

    def waits(self, wait: Wait) -> None:
        pass  # the tally knows it

    def _draw(self, tally: Tally) -> None:
        columns, rows = self._size()
        self._screen.draw(bars.lines(tally, self._title, self._clock(), columns, rows), columns, rows)

    def _size(self) -> tuple[int, int]:
        """The terminal's columns and rows; those of a VT100 if it does not know."""
        found = os.get_terminal_size(self._file.fileno())
        return found.columns or 80, found.lines or 24

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


def chosen(file: TextIO, title: str, *, as_json: bool, quiet: bool) -> Output:
    """The output that fits ``file`` and the options."""
    if as_json:
        return Json(file)
    if quiet or not file.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return Lines(file, quiet=quiet)
    return Bars(file, title)
