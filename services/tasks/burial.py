"""Burying: cleaning up after a dead shim until nothing of its task is left.

The shim's program has an action for this, ``delete``, which kills the task's processes and unmounts its root
filesystem. It may report success although its runtime failed, it may hang, and it may fail for want of a file in the
bundle. So a task is forgotten only when its processes are seen to be dead; those that live are killed here
(``dead_shim.py``). Then the exits and the deletion are published, and the bundle is removed.

If the processes cannot be ended the task is shown as UNKNOWN, its name stays taken, and no exit is published. Cleaning
up is tried again with growing pauses, at once when a client kills or deletes the task, and at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial

from services.kit import errors, threads, tracing
from services.tasks import checks, dead_shim
from services.tasks.dead_shim import Sighting
from services.tasks.names import Claim, Names
from services.tasks.roots import Roots
from services.tasks.service import Service
from services.tasks.store import Exit, Process, Status, task_not_found
from services.tasks.task import KILLED, Life, Task

log = logging.getLogger(__name__)

ENDING = 5.0
"""Seconds to wait for killed processes to end, in each attempt."""
_APART = "cleaning up after a dead shim"
"""This work has threads of its own: processes and filesystems that hang keep them, and must not delay other tasks."""
AGAIN, AGAIN_AT_MOST = 0.25, 60.0
"""Seconds between two attempts: after the first one, and at most."""
_MOMENT = 0.1
"""Seconds for which the root of a task that is gone stays held."""
_AT_ONCE = 16
_MOVING = 3.0
"""Attempts that are made at once, each with a process and a thread, apart from those that have taken longer than so
many seconds: what hangs must not delay the others. A node may lose all its shims at the same time.
"""


class Limit:
    """At most ``count`` blocks at once, apart from those that have taken longer than ``seconds``."""

    def __init__(self, count: int, seconds: float) -> None:
        self._free, self._seconds = asyncio.Semaphore(count), seconds

    @contextlib.asynccontextmanager
    async def block(self) -> AsyncIterator[None]:
        """Waits until one may begin, and is one."""
        await self._free.acquire()
        counts = True

        def counts_no_more() -> None:
            nonlocal counts
            if counts:
                counts = False
                self._free.release()

        late = asyncio.get_running_loop().call_later(self._seconds, counts_no_more)
        try:
            yield
        finally:
            late.cancel()
            counts_no_more()


class Burial:
    """Buries the shims of one service. ``end`` kills the processes that a task left, as
    :func:`services.tasks.dead_shim.end`, and ``let_go`` lets go of its root.
    """

    def __init__(
        self,
        service: Service,
        names: Names,
        *,
        end: Callable[[Sighting, float], list[int]] = dead_shim.end,
        let_go: Callable[[int], Awaitable[None]] | None = None,
        limit: Limit | None = None,
    ) -> None:
        self._service, self._names = service, names
        self._end, self._let_go = end, let_go or Roots().let_go
        self._limit = limit or Limit(_AT_ONCE, _MOVING)

    def begin(self, task: Task, *, told: bool = True) -> None:
        """Start to bury a dead shim. The task is DEAD from now on, and its name is taken until it is GONE. Its end is
        published if it is ``told``; that of a task that was never made is not.
        """
        task.dies()
        self._names.tasks[task.key] = task
        self._service.spawn(self._bury(task, self._names.claim(task.key), told=told))

    async def begun(self, task: Task) -> None:
        """Wait until the burial is done, or one attempt has failed."""
        await task.until(lambda: task.life is Life.GONE or task.cleaning.trouble)

    async def hurry(self, task: Task) -> None:
        """Make an attempt now. FailedPrecondition, with the reason, if it fails."""
        # An attempt that runs already may fail for a reason that is past.
        before = task.cleaning.attempts + task.cleaning.underway
        task.cleaning.hurried.set()
        with tracing.wait("lock", **{"splitd.wait.for": f"the end of what the dead shim of task {task.name} left"}):
            done = await task.until(
                lambda: task.life is Life.GONE or task.cleaning.attempts > before,
                2 * (self._service.config.cleanup_timeout + ENDING) + 1.0,
            )
        if not done or task.life is not Life.GONE:
            raise task.in_the_way()

    async def last_state(self, task: Task) -> Process:
        """The state of a DEAD task: UNKNOWN. NotFound if it is gone within the time that a state may take."""
        await task.until(lambda: task.life is Life.GONE or task.cleaning.trouble, self._service.config.state_timeout)
        if task.life is Life.GONE:
            raise errors.NotFound.verbatim(task_not_found(task.name))
        return Process(task.name, task.init.pid, Status.UNKNOWN)

    async def _bury(self, task: Task, claim: contextlib.AbstractContextManager[object], *, told: bool) -> None:
        log.info("the shim of %s is dead, cleaning up", task)
        with claim:
            cleaning, pause = task.cleaning, AGAIN
            while (died := await self.clean(task)) is None:
                log.log(
                    logging.WARNING if cleaning.attempts <= 3 else logging.DEBUG,
                    "%s: what its dead shim left is still there (%s), next try within %g s",
                    task,
                    cleaning.trouble,
                    pause,
                )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(cleaning.hurried.wait(), pause)
                cleaning.hurried.clear()
                pause = min(pause * 2, AGAIN_AT_MOST)
            if told and _had_init(task):
                self._tell(task, died)
            await self.forget(task)

    def _tell(self, task: Task, died: Exit) -> None:
        node = self._service.node
        for process in task.execs.values():
            if process.exit is None and process.pid:
                task.exited(process, Exit(KILLED, died.at, process.pid))
                node.exited(task.namespace, task.name, process.exec_id, Exit(KILLED, died.at, process.pid))
        how = task.init.exit or died
        if task.init.exit is None:
            task.exited(task.init, how)
        node.exited(task.namespace, task.name, "", how)
        node.deleted(task.namespace, task.name, how)

    async def clean(self, task: Task) -> Exit | None:
        """Make one attempt: run the program's ``delete``, and kill the processes that it left. Return how the task
        ended, or None if the attempt failed; then ``cleaning.trouble`` has the reason.

        Dead processes are what counts. If they are dead and only the program fails, it is tried once more, for cgroups
        and the runtime's state, and then no longer.
        """
        cleaning = task.cleaning
        cleaning.underway = True
        try:
            async with self._limit.block():
                died, trouble = await self._cleaned(task)
        # such as no more threads: on any failure the task is neither forgotten nor given up
        except Exception as error:
            if not isinstance(error, OSError):
                log.exception("cleaning up after the dead shim of %s", task)
            died, trouble = None, f"it cannot be cleaned up: {error}"
        finally:
            cleaning.underway = False
        if died is None:
            cleaning.trouble = trouble
            cleaning.attempts += 1
            task.notify()
        return died

    async def _cleaned(self, task: Task) -> tuple[Exit | None, str]:
        """How the task ended, or the reason for the failure. OSError if its processes cannot be looked for: then they
        may live.
        """
        service = self._service
        died, trouble = None, ""
        try:
            if task.seen is None:
                task.seen = service.notes.sighting(task.bundle) or dead_shim.in_bundle(
                    task.bundle, task.program.path, service.runc_root
                )
            dead_shim.restore(task.bundle, task.seen)
            self._ensure_runc_files(task)
            task.init.pid = task.init.pid or task.bundle.init_pid() or task.seen.pid
            died = await task.program.delete(service.config.cleanup_timeout)
        except (errors.NodeError, OSError, ValueError) as error:
            trouble = str(error)
        if task.seen is not None and (left := await threads.apart(_APART, partial(self._end, task.seen, ENDING))):
            return None, f"{', '.join(map(str, left))} cannot be killed"
        if died is None and task.cleaning.attempts and task.seen is not None:
            died = Exit(KILLED if task.init.pid else 255, time.time_ns(), task.init.pid)
        if died is None:
            return None, trouble
        # what a runtime that failed left of its state
        await asyncio.to_thread(shutil.rmtree, service.runc_root / task.namespace / task.name, ignore_errors=True)
        return Exit(died.status, died.at, died.pid or task.init.pid), ""

    def _ensure_runc_files(self, task: Task) -> None:
        """Write the two files that the ``delete`` of runc's shim reads, if the shim died before it wrote them.

        ``options.json`` names runc's state directory. Without it ``delete`` works in the machine's default directory,
        and deletes other nodes' containers. ``runtime`` names runc's program; an empty file means the default.
        """
        if not checks.of_runc(task.program.path):
            return
        for name, text in (("options.json", json.dumps({"root": str(self._service.runc_root)})), ("runtime", "")):
            if not (path := task.bundle.path / name).exists():
                path.write_text(text)

    async def forget(self, task: Task) -> None:
        """Remove the bundle, the notes and the name of a task that has no processes any more."""
        service, bundle = self._service, task.bundle
        with tracing.span("tasks.bundle.remove"):
            with _logged(task):
                service.notes.forget_sighting(bundle)  # first: a bundle without a sighting is only loaded again
            with _logged(task):
                if task.life is Life.DEAD or bundle.mounted():
                    async with self._limit.block():
                        await threads.apart(_APART, bundle.delete)
                else:
                    bundle.delete()  # a dozen small files take less time than a thread
            with _logged(task):
                service.notes.forget(bundle)
        if (root := task.take_root()) >= 0:
            service.spawn(self._without(root, self._names.claim(task.key)))
        self._names.forget(task)
        task.forgotten()
        if service.on_gone is not None:
            service.on_gone(task.namespace, task.name)
        await task.close()

    async def _without(self, root: int, claim: contextlib.AbstractContextManager[Claim]) -> None:
        """Let go of the root of a task that is gone, in a moment or when somebody wants its name, which is taken until
        then. Meanwhile the client that deleted the task has the disk to itself, for the records that it removes next.
        """
        with claim as claimed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(claimed.wanted.wait(), _MOMENT)
            await self._let_go(root)


def _had_init(task: Task) -> bool:
    """Return whether the task was created. A pid file that cannot be read says so too."""
    try:
        return bool(task.init.pid or task.bundle.init_pid())
    except OSError:
        return True


@contextlib.contextmanager
def _logged(task: Task) -> Iterator[None]:
    """Log what cannot be removed, and go on: the task is gone all the same, and its name is free."""
    try:
        yield
    except OSError as error:
        log.error("what %s left cannot be removed: %s", task, errors.words_of_path(error))
    except Exception:  # such as no more threads
        log.exception("what %s left cannot be removed", task)
