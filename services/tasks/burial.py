"""What buries a shim: how that is cleaned up which a dead one left, until nothing of it is there.

The program of the shim has an action for this, ``delete``: it kills the task's processes and unmounts its root
filesystem. It may say that all is well though its runtime has failed, hang, or fail for want of a file in the bundle.
So no task is forgotten before its processes are seen dead, and those that live are killed here (``dead_shim.py``).
Then the exit of each process and the deletion are published, and the bundle goes.

Where the processes cannot be ended the task is shown as UNKNOWN, its name stays taken, and its exit untold. It is tried
again with growing pauses, at once when the task is killed or deleted, and at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator

from services.kit import errors
from services.tasks import checks, dead_shim
from services.tasks.dead_shim import Sighting
from services.tasks.names import Names
from services.tasks.service import Service
from services.tasks.store import Exit, Process, Status, task_not_found
from services.tasks.task import KILLED, Life, Task

log = logging.getLogger(__name__)

ENDING = 5.0
"""Seconds for which killed processes are waited for each time."""
AGAIN, AGAIN_AT_MOST = 0.25, 60.0
"""Seconds until what failed is tried again: after the first time, and at most."""


class Burial:
    """Of the tasks of one service. ``end`` kills what a task left, as :func:`services.tasks.dead_shim.end`."""

    def __init__(
        self, service: Service, names: Names, *, end: Callable[[Sighting, float], list[int]] = dead_shim.end
    ) -> None:
        self._service, self._names = service, names
        self._end = end

    def begin(self, task: Task, *, told: bool = True) -> None:
        """The shim of a task is dead. From here on the task is DEAD, and its name is taken until it is GONE. Not
        ``told`` is the end of a task that was never made.
        """
        task.dies()
        self._names.tasks[task.key] = task
        self._service.spawn(self._bury(task, self._names.claim(task.key), told=told))

    async def begun(self, task: Task) -> None:
        """Wait until it is done, or was tried in vain once."""
        await task.until(lambda: task.life is Life.GONE or task.cleaning.trouble)

    async def hurry(self, task: Task) -> None:
        """Try now. FailedPrecondition with what is in the way, if it still is."""
        before = task.cleaning.attempts + task.cleaning.underway  # one that began earlier tells nothing of now
        task.cleaning.hurried.set()
        if (
            not await task.until(
                lambda: task.life is Life.GONE or task.cleaning.attempts > before,
                2 * (self._service.config.cleanup_timeout + ENDING) + 1.0,
            )
            or task.life is not Life.GONE
        ):
            raise task.in_the_way()

    async def last_state(self, task: Task) -> Process:
        """UNKNOWN. NotFound if the end of the task is a matter of moments."""
        await task.until(lambda: task.life is Life.GONE or task.cleaning.trouble, self._service.config.state_timeout)
        if task.life is Life.GONE:
            raise errors.NotFound.verbatim(task_not_found(task.name))
        return Process(task.name, task.init.pid, Status.UNKNOWN)

    async def _bury(self, task: Task, claim: contextlib.AbstractContextManager[None], *, told: bool) -> None:
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
            if told and (task.bundle.init_pid() or task.init.pid):
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
        """Have the program's ``delete`` do its work, and end what that leaves alive; how the task ended. None, and
        ``cleaning.trouble`` says why, where it is to be tried again.

        The program may fail though the processes are dead, which is what counts. Then it is tried once more, for
        cgroups and the runtime's state, and no longer.
        """
        cleaning = task.cleaning
        cleaning.underway = True
        try:
            died, trouble = await self._cleaned(task)
        # such as no more threads; whatever it is, the task is neither forgotten nor given up
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
        """How the task ended, or why that is not known. OSError where its processes cannot be looked for: that
        tells nothing of them.
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
        if task.seen is not None and (left := await asyncio.to_thread(self._end, task.seen, ENDING)):
            return None, f"{', '.join(map(str, left))} cannot be killed"
        if died is None and task.cleaning.attempts and task.seen is not None:
            died = Exit(KILLED if task.init.pid else 255, time.time_ns(), task.init.pid)
        if died is None:
            return None, trouble
        # of a runtime that could not
        await asyncio.to_thread(shutil.rmtree, service.runc_root / task.namespace / task.name, ignore_errors=True)
        return Exit(died.status, died.at, died.pid or task.init.pid), ""

    def _ensure_runc_files(self, task: Task) -> None:
        """The shim of runc reads its state directory from the bundle; one that died before it wrote it would look in
        the machine's, and delete others' containers.

        It also wants to read there which program is runc: nothing in the file is its own choice.
        """
        if not checks.of_runc(task.program.path):
            return
        for name, text in (("options.json", json.dumps({"root": str(self._service.runc_root)})), ("runtime", "")):
            if not (path := task.bundle.path / name).exists():
                path.write_text(text)

    async def forget(self, task: Task) -> None:
        """Nothing runs any more: remove the bundle and the entry."""
        service, bundle = self._service, task.bundle
        with _logged(task):
            service.notes.forget_sighting(bundle)  # first: a bundle without it is only looked at once more
        with _logged(task):
            if bundle.mounted():
                await asyncio.to_thread(bundle.delete)
            else:
                bundle.delete()  # a dozen small files: less than the way to a thread takes
        with _logged(task):
            service.notes.forget(bundle)
        self._names.forget(task)
        task.forgotten()
        if service.on_gone is not None:
            service.on_gone(task.namespace, task.name)
        await task.close()


@contextlib.contextmanager
def _logged(task: Task) -> Iterator[None]:
    """What cannot be removed stays: the task is gone all the same, and its name is free."""
    try:
        yield
    except OSError as error:
        log.error("what %s left cannot be removed: %s", task, errors.words_of_path(error))
