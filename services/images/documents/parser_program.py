"""A program that parses large documents, one at a time, with clients in turn.

Parsing JSON holds the interpreter: for tens of milliseconds if the document has megabytes, also in a thread, and all
other calls wait. It also makes millions of small objects, of which a few remain and keep nearly all of the memory. A
program avoids both: it runs beside the service with lower priority, and ends when there is nothing to parse. It runs
the code that its service was started with (``kit/kept.py``).
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

from services.images.concurrency.fair_queue import FairQueue, Observing
from services.kit import errors, gojson, kept

P = ParamSpec("P")
T = TypeVar("T")

LARGE = 1 << 17
"""Bytes from which a document is worth the program, which takes a tenth of a second to start: a hundred times the usual
size.
"""

_BATCH = 50
"""Elements of a list that are sent at once: some hundred microseconds of the interpreter's time."""

_IDLE = 10.0
"""Seconds without work after which the program ends."""

_SILENT = 60.0
"""Seconds without an answer after which it is killed: a hundred times what the largest document takes."""

_MEMORY = 1 << 30
"""Bytes of address space that it may use."""

_NICE = 10

_FILES = (
    "services/__init__.py",
    "services/images/__init__.py",
    *(f"services/images/concurrency/{name}.py" for name in ("__init__", "fair_queue")),
    *(f"services/images/documents/{name}.py" for name in ("__init__", "manifests", "parser_program", "tokens")),
    *(f"services/oci/{name}.py" for name in ("__init__", "descriptors", "digests", "media_types", "platforms")),
    *(f"services/kit/{name}.py" for name in ("__init__", "errors", "gojson", "identifiers", "kept")),
)
"""The modules of ours that it imports."""


async def read(document: bytes, parse: Callable[Concatenate[bytes, P], T], *arguments: P.args, **named: P.kwargs) -> T:
    """``parse(document, ...)``, where ``parse`` is a function of a module. A small document is parsed at once, a larger
    one in a thread as by ``gojson.apart``, a large one by the program. Its NodeErrors and ``gojson.Malformed`` are
    raised here.
    """
    if len(document) < LARGE:
        return await gojson.apart(len(document), lambda: parse(document, *arguments, **named))
    loop = asyncio.get_running_loop()
    try:
        async with _QUEUE.turn(_caller(), _observing):
            return cast("T", await loop.run_in_executor(_THREAD, _PROGRAM.read, parse, (document, *arguments), named))
    finally:
        loop.call_later(_IDLE, _THREAD.submit, _PROGRAM.end_if_idle, _PROGRAM.read_so_far)


class Program:
    """The program, seen from its service. Used by one thread at a time."""

    def __init__(self, silent: float = _SILENT) -> None:
        self._silent = silent
        self._process: subprocess.Popen[bytes] | None = None
        self._file: BinaryIO | None = None
        self.read_so_far = 0
        """The number of documents so far."""

    def read(self, parse: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The result of ``parse``, or its exception. Internal if the program ends or does not answer."""
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
            raise errors.Internal(f"the program that parses documents did not answer for {self._silent:g} s") from None
        except (OSError, EOFError, pickle.UnpicklingError):
            raise errors.Internal(f"the program that parses documents {self.end()}, see the service's log") from None
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
            ours.close()  # makefile keeps it open
            code = kept.archive(_FILES)
            environment = {**os.environ, "PYTHONPATH": kept.search_path(code, sys.path)}
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-P", "-c", "from services.images.documents.parser_program import main; main()"],
                stdin=theirs.fileno(),
                env=environment,
                pass_fds=(code,),
            )

    def end_if_idle(self, read_so_far: int) -> None:
        """End the program if it has parsed nothing since."""
        if self.read_so_far == read_so_far:
            self.end()

    def kill(self) -> None:
        """Kill the program, from any thread; a waiting caller gets an error."""
        if (process := self._process) is not None:
            process.kill()

    def end(self) -> str:
        """End the program if it runs. Returns how it ended."""
        process, file = self._process, self._file
        self._process = self._file = None
        if file is not None:
            with contextlib.suppress(OSError):  # unsent data is for nobody
                file.close()
        if process is None:
            return "could not be started"
        process.kill()
        code = process.wait()
        return f"ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"


@contextlib.contextmanager
def available(caller: Callable[[], str] = str, observing: Observing | None = None) -> Iterator[None]:
    """A context for the service's lifetime. The program gets the code as it is now, and is killed at the end of the
    block, whatever it is doing: otherwise the end of the process would wait for it.

    ``caller`` names the client for which a document is parsed; ``observing`` is told who waits for whom.
    """
    global _caller, _observing
    _caller, _observing = caller, observing
    kept.archive(_FILES)
    try:
        yield
    finally:
        _PROGRAM.kill()


_THREAD = ThreadPoolExecutor(1, "reading")
_PROGRAM = Program()
_QUEUE = FairQueue()
_caller: Callable[[], str] = str
_observing: Observing | None = None


# ---------------------------------------------------------------------------------------------- the program


def main() -> None:
    """Answer requests on standard input, a socket, until its end."""
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
