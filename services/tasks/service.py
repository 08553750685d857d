"""The service that all its tasks share: directories, settings, the node around it, and the background work."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from services.kit import errors, loops
from services.tasks.bundle import Bundle
from services.tasks.config import Config
from services.tasks.dead_shim import Sighting
from services.tasks.notes import Notes
from services.tasks.shim import Connection, Environment, Program, Programs
from services.tasks.store import Exit, Node

log = logging.getLogger(__name__)
T = TypeVar("T")

Key = tuple[str, str]
"""The namespace and the name of a task."""

ExitHook = Callable[[str, str, Exit], None]
"""Called with namespace, name and exit when a task's init has ended."""
GoneHook = Callable[[str, str], None]
"""Called with namespace and name when a task is gone."""


class Service:
    """Made once. ``connection`` is the class of the connections to shims."""

    def __init__(
        self,
        root: Path,
        state: Path,
        node: Node,
        config: Config = Config(),
        on_exit: ExitHook | None = None,
        on_gone: GoneHook | None = None,
        connection: type[Connection] = Connection,
    ) -> None:
        self.root, self.state = root, state
        self.node, self.config = node, config
        self.on_exit, self.on_gone = on_exit, on_gone
        self.connection = connection
        self.notes = Notes(state / "tasks")
        self.runc_root = state / "runc"
        """The state directory of runc for containers whose options name none."""
        self.environment = Environment(state / "containerd.sock", state / "containerd.sock.ttrpc", config.shim_env)
        self.programs = Programs()
        self.background = loops.Tasks()
        """The tasks that :meth:`spawn` started."""

    def bundle(self, namespace: str, name: str) -> Bundle:
        return Bundle.of(self.root, self.state, namespace, name)

    def program(self, bundle: Bundle, path: str) -> Program:
        """The shim's program at ``path``, to be run for a bundle."""
        return Program(path, bundle, self.environment)

    def program_of(self, bundle: Bundle, seen: Sighting | None = None) -> Program:
        """The program that the bundle names, else the sighting, else runc's shim."""
        path = bundle.program() or (seen.program if seen else "") or self.programs.find("io.containerd.runc.v2")
        return self.program(bundle, path)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start work in the background. It ends with the service; its failure is logged. It outlives the call that
        starts it, so it has neither that call's deadline nor its trace.
        """
        job = self.background.keep(loops.task("a task's follower", work, context=contextvars.Context()))
        job.add_done_callback(_log_failure)
        return job


@contextlib.contextmanager
def prefixed(words: str) -> Iterator[None]:
    """Put ``words`` before the message of an error, and keep its class; an OSError becomes one of ours."""
    try:
        yield
    except errors.NodeError as error:
        raise type(error).verbatim(f"{words}{error}", error.trailers) from error
    except OSError as error:
        raise errors.of_system(error, words.removesuffix(": ")) from error


def _log_failure(job: asyncio.Task[Any]) -> None:
    if not job.cancelled() and (error := job.exception()) is not None:
        if isinstance(error, errors.NodeError):
            log.debug("%s", error)
        else:
            log.error("a task's follower failed", exc_info=error)
