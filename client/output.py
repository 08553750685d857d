"""How a transfer shows itself while it goes on: by bars on a terminal, by lines of JSON to a program, or not at all.

A line of JSON is one object, ended by a newline. As long as the transfer goes on each tells of a part that changed::

    {"name": "layer-sha256:...", "digest": "sha256:...", "stage": "downloading", "bytes": 1048576, "total": 4194304,
        "rate": 524288.0}

``bytes`` are those of the stage and never fewer than before within it; ``total`` is 0 where it is not known; ``rate``
is in bytes a second. The stages are waiting, downloading (or uploading; sending or receiving for an archive),
downloaded, extracting, done; or exists, for what was there already: here, in the registry, or in another repository of
it. A line without a name says which host has been ``silent`` for how many ``seconds``, while the transfer waits for it.
The last line has the ``outcome``: done, failed (with the ``error``), or cancelled. That of a pull has as
``otherPlatforms`` what a manifest is for that is for none of those wanted. That of an import lists the ``images`` that
it stored, and as ``notImported`` those for other ``platforms``.
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
from services.kit import loops

FRAME_SECONDS = 0.1
SILENT_SECONDS = 10
"""From one line about a host that is silent to the next."""


class Output(Protocol):
    """Where a transfer is shown."""

    def running(self, tally: Tally) -> contextlib.AbstractAsyncContextManager[None]:
        """Show it while the block lasts, and leave how it stood at the end."""
        ...

    def changed(self, part: Part) -> None:
        """A part of it has changed."""
        ...

    def silent(self, host: str, seconds: int) -> None:
        """It waits for ``host``, from which nothing has come for so long."""
        ...

    def ended(self, outcome: Mapping[str, Any]) -> None:
        """How it ended, for programs."""
        ...

    def said(self, line: str) -> None:
        """What it came to, for people."""
        ...


class Lines:
    """Only what it came to, and on standard error whom it waits for; with ``quiet`` not even that."""

    def __init__(self, file: TextIO, *, quiet: bool = False) -> None:
        self._file = file
        self._quiet = quiet
        self._silent = ("", 0)

    @contextlib.asynccontextmanager
    async def running(self, tally: Tally) -> AsyncIterator[None]:
        yield

    def changed(self, part: Part) -> None:
        pass

    def silent(self, host: str, seconds: int) -> None:
        if not self._quiet and self._is_news(host, seconds):
            complain(f"{host} has been silent for {seconds} s, and is waited for")

    def _is_news(self, host: str, seconds: int) -> bool:
        """Whether another line about it is due."""
        said, at = self._silent
        if said == host and at <= seconds < at + SILENT_SECONDS:
            return False
        self._silent = host, seconds
        return True

    def ended(self, outcome: Mapping[str, Any]) -> None:
        pass

    def said(self, line: str) -> None:
        if not self._quiet:
            say(line, file=self._file)


class Json(Lines):
    """A line for each change."""

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

    def silent(self, host: str, seconds: int) -> None:
        if self._is_news(host, seconds):
            self._put({"silent": host, "seconds": seconds})

    def ended(self, outcome: Mapping[str, Any]) -> None:
        self._put(outcome)

    def _put(self, value: Mapping[str, Any]) -> None:
        print(json.dumps(value), file=self._file, flush=True)


class Bars(Lines):
    """Bars on a terminal, ten times a second, below ``title``."""

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

    def silent(self, host: str, seconds: int) -> None:
        pass  # the tally knows

    def _draw(self, tally: Tally) -> None:
        columns, rows = self._size()
        self._screen.draw(bars.lines(tally, self._title, self._clock(), columns, rows), columns, rows)

    def _size(self) -> tuple[int, int]:
        """Columns and rows now; those of a VT100 where the terminal does not know."""
        found = os.get_terminal_size(self._file.fileno())
        return found.columns or 80, found.lines or 24

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


def chosen(file: TextIO, title: str, *, as_json: bool, quiet: bool) -> Output:
    """What fits where ``file`` leads, and what was asked for."""
    if as_json:
        return Json(file)
    if quiet or not file.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return Lines(file, quiet=quiet)
    return Bars(file, title)
