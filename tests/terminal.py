"""A program on a terminal that understands escape sequences, as its user sees it. For tests, which poll the screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyte

from tests.support import TOP, eventually


class Terminal:
    """``command``, started on a terminal of ``columns`` and ``rows``."""

    def __init__(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, columns: int = 90, rows: int = 24
    ) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""
        """All output so far."""
        self._code: int | None = None
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(TOP)
            os.environ.update({"TERM": "xterm", **(env or {})})
            _set_size(0, columns, rows)
            os.execvp(command[0], list(map(str, command)))

    @property
    def lines(self) -> list[str]:
        """The lines on the screen now, without trailing blanks."""
        self._read()
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def until(self, seen: Callable[[list[str]], object], why: str, seconds: float = 60.0) -> list[str]:
        """The lines, once ``seen`` accepts them."""

        def now() -> list[str]:
            lines = self.lines
            assert seen(lines), "\n" + "\n".join(lines)
            return lines

        return eventually(now, why, seconds)

    def resize(self, columns: int, rows: int) -> None:
        """Resize the window; the program gets SIGWINCH."""
        self._read()
        self.screen.resize(rows, columns)
        _set_size(self._fd, columns, rows)

    def type(self, text: str) -> None:
        """Type ``text``; ``\\x03`` is Ctrl-C."""
        os.write(self._fd, text.encode())

    def wait(self, seconds: float = 60.0) -> int:
        """The program's exit code, once it has ended and all its output is on the screen."""
        eventually(lambda: not self._read(), "the program does not end", seconds)
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def close(self) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)

    def _read(self) -> bool:
        """Show new output; False once there will be no more."""
        while select.select([self._fd], [], [], 0)[0]:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:  # EIO: no process has the terminal open any more
                return False
            self.output += data
            self._stream.feed(data)
        return True


@contextlib.contextmanager
def terminal(command: Sequence[str | Path], **options: object) -> Iterator[Terminal]:
    """A terminal with a program, which is killed at the end of the block."""
    running = Terminal(command, **options)  # type: ignore[arg-type]
    try:
        yield running
    finally:
        running.close()


def _set_size(fd: int, columns: int, rows: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
