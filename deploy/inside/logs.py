"""supervisord's log files, its own and those of its processes, on a disk that may be full or broken.

supervisord's own handlers cannot deal with such a disk. An error while a log is rotated ends supervisord, or closes the
pipe of the process whose log it is. A log that cannot be opened keeps its process from being started again. Each line
that cannot be written puts a traceback on standard error. Here, a line that cannot be written is lost. The log says how
much was lost as soon as it can be written again, and standard error says it once in a while.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from dataclasses import dataclass
from io import FileIO
from typing import Any

from supervisor import loggers

AGAIN = 1.0
"""Seconds after an error until the file is tried again."""
TOLD = 60.0
"""Seconds from one line on standard error about a file to the next."""


@dataclass(slots=True)
class Loss:
    """The state of a file that cannot be written. Times are of the monotonic clock."""

    count: int = 0
    """Bytes that are missing in the file."""
    why: str = ""
    again: float = float("-inf")
    """When to try again."""
    told: float = float("-inf")
    """When standard error was told last."""


_losses: dict[str, Loss] = {}
"""By file name, since a process that is started again gets a new handler for the same file."""


class LogFile(loggers.Handler):  # type: ignore[misc]  # supervisor has no types
    """Replaces supervisord's ``FileHandler`` and ``RotatingFileHandler``, without their exceptions. With ``maxBytes`` 0
    the file is not rotated.
    """

    def __init__(self, filename: str, mode: str = "ab", maxBytes: int = 0, backupCount: int = 0) -> None:  # noqa: N803 (supervisord's names)
        super().__init__()
        self.baseFilename = filename
        self.mode = mode
        self._most = maxBytes
        self._backups = backupCount
        # a file object, not a number: when a process has ended, only the garbage collector closes its log
        self._file: FileIO | None = None
        self._loss = _losses.setdefault(filename, Loss())
        self._written(b"")

    # called by supervisord

    def emit(self, record: Any) -> None:
        """Write a record: the bytes of a process, or a message of supervisord's."""
        message = (
            record.msg
            if isinstance(record.msg, bytes) and self.fmt == "%(message)s"
            else (self.fmt % record.asdict()).encode("utf-8", "backslashreplace")
        )
        if not self._written(message):
            self._loss.count += len(message)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()

    def reopen(self) -> None:
        """Open the file that has this name now. SIGUSR2 asks for it, after the old one was moved."""
        self.close()
        self._loss.again = float("-inf")
        self._written(b"")

    def remove(self) -> None:
        self.close()
        with contextlib.suppress(OSError):
            os.remove(self.baseFilename)

    # the file

    def _written(self, message: bytes) -> bool:
        """Write a message; the result is whether it is in the file."""
        now = time.monotonic()
        if now < self._loss.again:
            return False
        try:
            file = self._opened(len(message))
            if self._loss.count:
                _write(
                    file,
                    (
                        f"\n{time.strftime('%Y-%m-%dT%H:%M:%S')} WARNING {self._loss.count} bytes of this log were "
                        "lost: "
                        f"{self._loss.why}\n"
                    ).encode(),
                )
                self._loss.count = 0
            _write(file, message)
        except OSError as error:
            self.close()
            self._loss.why = str(error.strerror)
            self._loss.again = now + AGAIN
            if now > self._loss.told + TOLD:
                self._loss.told = now
                complain(f"log file {self.baseFilename}: {error.strerror}: lines are lost until it can be written")
            return False
        self._loss.again = float("-inf")
        return True

    def _opened(self, length: int) -> FileIO:
        """The file, with room for so many bytes: it is rotated if it is too large. A file that cannot be rotated may
        have twice the size.
        """
        if self._file is None:
            self._file = FileIO(self.baseFilename, "a")
        found = os.fstat(self._file.fileno())
        if not found.st_nlink:  # the file was deleted
            self.close()
            return self._opened(length)
        if self._most and found.st_size and found.st_size + length > self._most:
            try:
                self._rotate()
            except OSError:
                if found.st_size + length > 2 * self._most:
                    raise
            else:
                return self._opened(length)
        return self._file

    def _rotate(self) -> None:
        names = [self.baseFilename, *(f"{self.baseFilename}.{number}" for number in range(1, self._backups + 1))]
        for name, older in reversed(list(itertools.pairwise(names))):
            with contextlib.suppress(FileNotFoundError):
                os.replace(name, older)
        if not self._backups:
            os.remove(self.baseFilename)
        self.close()


def _write(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def complain(words: str) -> None:
    """Print to standard error, if that can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(f"splitd: {words}", file=sys.stderr, flush=True)


def _unwritten(_: Any) -> None:
    """Replaces ``Handler.handleError``, which prints a traceback although perhaps nothing can be printed, as on a
    terminal that is gone.
    """


def install() -> None:
    """Make every log file of this supervisord a :class:`LogFile` from now on."""
    loggers.FileHandler = loggers.RotatingFileHandler = LogFile
    loggers.Handler.handleError = _unwritten
