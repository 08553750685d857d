"""Large documents are read by a program of their own, one after the other, of each client in turn.

Whoever reads JSON holds the interpreter: for tens of milliseconds where the document has megabytes, in a thread too,
and everybody else's calls wait. And of what is made of it, in millions of small objects, so little stays that it keeps
nearly all of the memory. A program takes both with it: it runs beside its service, after all that is in a hurry, and
ends when there is nothing to read. It has the code that its service was started with (``kit/kept.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar, cast

from services.images.concurrency.fair_queue import FairQueue
from services.kit import errors, gojson, kept

P = ParamSpec("P")
T = TypeVar("T")

LARGE = 1 << 17
"""Bytes of a document that is worth a program, which starts in a tenth of a second: a hundred times what most have."""

_BATCH = 50
"""Elements of a list that come at once: some hundred microseconds of the interpreter's time."""

_IDLE = 10.0
"""Seconds without work after which the program ends."""

_SILENT = 60.0
"""Seconds for which it may be silent: a hundred times what the largest document takes."""

_MEMORY = 1 << 30
"""Bytes of address space that it may have."""

_NICE = 10

_FILES = (
    "services/__init__.py",
    "services/images/__init__.py",
    *(f"services/images/concurrency/{name}.py" for name in ("__init__", "fair_queue")),
    *(f"services/images/documents/{name}.py" for name in ("__init__", "manifests", "parser")),
    *(f"services/oci/{name}.py" for name in ("__init__", "descriptors", "digests", "media_types", "platforms")),
    *(f"services/kit/{name}.py" for name in ("__init__", "errors", "gojson", "identifiers", "kept")),
)
"""What it imports of ours."""


async def read(document: bytes, parse: Callable[Concatenate[bytes, P], T], *arguments: P.args, **named: P.kwargs) -> T:
    """``parse(document, ...)``, a function of a module: at once, or, of a larger document, apart, as
    ``gojson.apart`` does, or by the program. Its NodeErrors and ``gojson.Malformed`` are the caller's.
    """
    if len(document) < LARGE:
        return await gojson.apart(len(document), lambda: parse(document, *arguments, **named))
    loop = asyncio.get_running_loop()
    try:
        async with _QUEUE.turn(_caller()):
            return cast("T", await loop.run_in_executor(_THREAD, _PROGRAM.read, parse, (document, *arguments), named))
    finally:
        loop.call_later(_IDLE, _THREAD.submit, _PROGRAM.rest, _PROGRAM.read_so_far)


class Program:
    """The program, as its service sees it. Used by one thread at a time."""

    def __init__(self, silent: float = _SILENT) -> None:
        self._silent = silent
        self._process: subprocess.Popen[bytes] | None = None
        self._file: BinaryIO | None = None
        self.read_so_far = 0
        """Documents."""

    def read(self, parse: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What ``parse`` returns; what it raises. Internal if the program ends, or is silent."""
        self.read_so_far += 1
        try:
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._file is not None
            pickle.dump((parse, arguments, named), self._file, pickle.HIGHEST_PROTOCOL)
            self._file.flush()
            how, *what = self._received()
            if how == "list":
                return [each for _ in range(what[0]) for each in self._received()]
        except TimeoutError:
            self.end()
            raise errors.Internal(f"the program that reads documents was silent for {self._silent:g} s") from None
        except (OSError, EOFError, pickle.UnpicklingError):
            raise errors.Internal(f"the program that reads documents {self.end()}, see the service's log") from None
        if how == "is":
            return what[0]
        if how == "malformed":
            raise gojson.Malformed(*what)
        if how == "error":
            raise errors.from_status(*what)
        raise RuntimeError(what[0])

    def _received(self) -> Any:
        return pickle.load(self._file)  # type: ignore[arg-type]  # noqa: S301

    def _start(self) -> None:
        self.end()
        ours, theirs = socket.socketpair()
        with theirs:
            ours.settimeout(self._silent)
            self._file = cast("BinaryIO", ours.makefile("rwb"))
            ours.close()  # with the file
            code = kept.archive(_FILES)
            environment = {**os.environ, "PYTHONPATH": kept.search_path(code, sys.path)}
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-P", "-c", "from services.images.documents.parser import main; main()"],
                stdin=theirs.fileno(),
                env=environment,
                pass_fds=(code,),
            )

    def rest(self, read_so_far: int) -> None:
        """End the program if it has read nothing since."""
        if self.read_so_far == read_so_far:
            self.end()

    def kill(self) -> None:
        """End the program, in any thread; whoever waits for it hears so."""
        if (process := self._process) is not None:
            process.kill()

    def end(self) -> str:
        """End the program if it runs; how it ended."""
        process, file = self._process, self._file
        self._process = self._file = None
        if file is not None:
            with contextlib.suppress(OSError):  # what was not sent is for nobody
                file.close()
        if process is None:
            return "could not be started"
        process.kill()
        code = process.wait()
        return f"ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"


@contextlib.contextmanager
def available(caller: Callable[[], str] = str) -> Iterator[None]:
    """Around what the service does: the program has the code of now, and none is left when the block ends, whatever it
    reads: the end of the process would wait for it.

    ``caller`` says for whom something is read.
    """
    global _caller
    _caller = caller
    kept.archive(_FILES)
    try:
        yield
    finally:
        _PROGRAM.kill()


_THREAD = ThreadPoolExecutor(1, "reading")
_PROGRAM = Program()
_QUEUE = FairQueue()
_caller: Callable[[], str] = str


# ---------------------------------------------------------------------------------------------- the program


def main() -> None:
    """Read what comes on standard input, a socket, until its end."""
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    with socket.socket(fileno=0) as asked, asked.makefile("rwb") as file:
        while True:
            try:
                parse, arguments, named = pickle.load(file)  # noqa: S301
            except EOFError:
                return
            for answer in _answers(parse, arguments, named):
                pickle.dump(answer, file, pickle.HIGHEST_PROTOCOL)
                file.flush()


def _answers(parse: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    try:
        found = parse(*arguments, **named)
    except gojson.Malformed as error:
        return [("malformed", error.why, error.where)]
    except errors.NodeError as error:
        return [("error", error.code, str(error))]
    except MemoryError:
        return [
            (
                "error",
                errors.ResourceExhausted.code,
                (
                    f"a document of {len(arguments[0])} bytes takes more than {_MEMORY} bytes of memory: "
                    f"{errors.ResourceExhausted.suffix}"
                ),
            )
        ]
    except Exception as error:
        return [("defect", f"reading a document: {error!r}")]
    if type(found) is not list:
        return [("is", found)]
    batches = [found[start : start + _BATCH] for start in range(0, len(found), _BATCH)]
    return [("list", len(batches)), *batches]
