"""Loading: finding out, when the service starts, what became of the tasks that were there before.

Tasks are found by their bundles, or by their sightings if a bundle was removed by hand. Then each shim is asked for its
task. There are five cases:

* A client was told that the task is deleted, and the service was killed before the shim had ended. That is done now.
* The shim answers. The task is known again; an exit that was not published yet is published.
* The shim accepts a connection, or does not refuse it, but does not answer. It is slow: the task is kept.
* No process listens at the address, or the shim's process is dead. The shim is buried.
* There is no address, or the shim does not know the task: a create was interrupted. It is undone.

If none of this can be found out, because a file of the bundle cannot be read or no program can be started, the task is
in *doubt*. It may run, so its name is taken: else a second one could be started beside it. It is shown as UNKNOWN, and
loaded again with growing pauses, at once when a client kills or deletes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil

from services.kit import errors, tracing
from services.tasks.bundle import TASKS, Bundle
from services.tasks.burial import AGAIN, AGAIN_AT_MOST, ENDING, Burial
from services.tasks.convert import exec_id_of
from services.tasks.ending import Ending
from services.tasks.names import Doubt, Names
from services.tasks.service import Key, Service
from services.tasks.shim import Connection
from services.tasks.store import Exit, Status
from services.tasks.task import Life, Task, nobody_listens

log = logging.getLogger(__name__)

SECONDS = 2.0
"""How long a start waits until each task was tried once."""


class Loading:
    """Loads the tasks of one service. The start waits for them for at most ``seconds``."""

    def __init__(
        self, service: Service, names: Names, burial: Burial, ending: Ending, *, seconds: float = SECONDS
    ) -> None:
        self._service, self._names = service, names
        self._burial, self._ending = burial, ending
        self._seconds = seconds
        self._rebooted = False

    async def load(self) -> None:
        """Find the shims that run. The tasks of shims that answer in time are known when this returns. The names of
        the others are taken, and they are known soon after.
        """
        limit = asyncio.Semaphore(self._service.config.load_parallel)
        self._rebooted = self._service.notes.machine_has_rebooted()
        self._names.found = {(bundle.namespace, bundle.id): bundle for bundle in self._bundles()}
        here = set(self._names.found)
        looked = []
        for key, bundle in self._names.found.items():
            doubt = Doubt()
            looked.append(doubt.tried)
            self._service.spawn(self._load_one(key, bundle, doubt, self._names.claim(key), limit))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                for tried in looked:
                    await tried.wait()
        await asyncio.to_thread(self._remove_orphans, here)
        self._service.notes.note_boot()

    async def look_again(self, key: Key) -> None:
        """Load a task that is in doubt again now, and wait for that."""
        doubt = self._names.doubts.get(key)
        if doubt is None:
            return
        config = self._service.config
        doubt.hurried.set()
        known = tracing.wait("lock", **{"splitd.wait.for": f"what became of task {key[1]}"})
        with known, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * (config.load_timeout + config.cleanup_timeout + ENDING)):
                for _ in range(1 + doubt.trying):  # one that runs already may fail for a reason that is past
                    if self._names.doubts.get(key) is doubt:
                        await doubt.tried.wait()

    # -- what is there

    def _bundles(self) -> list[Bundle]:
        found = []
        for space in sorted((self._service.state / TASKS).iterdir()):
            if space.name.startswith(".") or not space.is_dir():
                continue
            for path in sorted(space.iterdir()):
                if path.name.startswith("."):
                    shutil.rmtree(path, ignore_errors=True)  # half deleted
                elif path.is_dir():
                    found.append(self._service.bundle(space.name, path.name))
        for key in self._service.notes.sighted():  # their bundles were removed by hand
            if not (bundle := self._service.bundle(*key)).path.exists():
                found.append(bundle)
        return found

    def _remove_orphans(self, here: set[Key]) -> None:
        """Remove work directories and notes of tasks that have no bundle: work directories outlive a reboot, bundles
        do not. Those of the tasks that are ``here`` stay: if a bundle was removed by hand, loading restores it later.
        """
        bundles = self._service.state / TASKS
        for path in (self._service.root / TASKS).glob("*/*"):
            key = (path.parent.name, path.name.removeprefix("."))
            if not (bundles / key[0] / key[1]).exists() and key not in here:
                shutil.rmtree(path, ignore_errors=True)
        self._service.notes.remove_orphans(bundles, here)

    # -- one of them

    async def _load_one(
        self,
        key: Key,
        bundle: Bundle,
        doubt: Doubt,
        claim: contextlib.AbstractContextManager[object],
        limit: asyncio.Semaphore,
    ) -> None:
        """Try until it is known what became of a task."""
        names, pause, attempts = self._names, AGAIN, 0
        try:
            while True:
                doubt.trying = True
                try:
                    with claim:
                        async with limit:
                            await self._load_bundle(bundle)
                    return
                except Exception as error:
                    if key in names.tasks:
                        log.exception("task %s/%s is known again, but not all of it", *key)
                        return
                    doubt.trouble = errors.words_of_path(error) if isinstance(error, OSError) else str(error)
                    attempts += 1
                    log.log(
                        logging.WARNING if attempts <= 3 else logging.DEBUG,
                        "task %s/%s: what became of it cannot be found out: %s; next try within %g s",
                        *key,
                        doubt.trouble,
                        pause,
                        exc_info=attempts == 1 and not isinstance(error, (errors.NodeError, OSError)),
                    )
                finally:
                    doubt.trying = False
                # No other code has run since the claim ended: the name is never free.
                names.doubts[key] = doubt
                doubt.again()
                claim = contextlib.nullcontext()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(doubt.hurried.wait(), pause)
                doubt.hurried.clear()
                pause = min(pause * 2, AGAIN_AT_MOST)
        finally:
            del names.found[key]
            names.doubts.pop(key, None)
            doubt.again()

    async def _load_bundle(self, bundle: Bundle) -> None:
        seen = self._service.notes.sighting(bundle)
        task = Task(bundle, self._service.program_of(bundle, seen), self._service)
        task.seen = seen
        try:
            await self._load_task(task)
        except BaseException:
            if self._names.tasks.get(task.key) is not task:  # the next try makes another one
                if task.life is not Life.GONE:
                    task.leaves()
                await task.close()
            raise

    async def _load_task(self, task: Task) -> None:
        if task.seen is None and not any(task.bundle.path.iterdir()):
            await self._burial.forget(task)
            return
        task.mend()
        task.open_log()
        if (how := task.bundle.deletion()) is not None:
            log.info("%s was deleted, removing what is left of it", task)
            await self._ending.sweep(task)
            if how.pid:  # a second time, mostly, and then the gateway drops it
                self._service.node.exited(task.namespace, task.name, "", how)
                self._service.node.deleted(task.namespace, task.name, how)
            return
        try:
            address = task.address()
        except errors.DataLoss:
            if not self._rebooted:
                raise
            address = None  # a power cut left an empty file, on a disk; no shim has outlived that
        if address is None:
            log.info("%s was never made whole, removing it", task)
            await self._ending.sweep(task)
            return
        try:
            await task.connect(address, self._service.config.load_timeout)
        except errors.NodeError as error:
            if nobody_listens(error):
                await self._bury(task)
                return
            log.warning("shim of %s: %s; it is kept", task, error)
            self._keep(task)
            return
        await self._examine(task, task.connection)

    async def _bury(self, task: Task) -> None:
        """Bury the shim, and wait for the first attempt only: other tasks wait to be loaded."""
        self._burial.begin(task)
        await self._burial.begun(task)

    def _adopt(self, task: Task) -> None:
        self._names.tasks[task.key] = task
        task.follow(self._burial.begin)

    def _keep(self, task: Task) -> None:
        """Keep the task of a slow shim. Its exit is learnt from a Wait, even if it was before the start."""
        task.init.pid = task.seen.pid if task.seen else 0
        self._adopt(task)
        waiting = task.watch(task.init)
        if task.init.pid and not self._service.notes.exit_was_seen(task.bundle):
            self._service.spawn(self._tell_exit(task, waiting))

    async def _tell_exit(self, task: Task, waiting: asyncio.Task[Exit]) -> None:
        """Publish the exit. The gateway drops it if the shim has published it already."""
        self._service.node.exited(task.namespace, task.name, "", await waiting)

    async def _examine(self, task: Task, connection: Connection | None) -> None:
        """Ask a shim for the state of its task."""
        assert connection is not None
        seconds = self._service.config.load_timeout
        try:
            async with asyncio.timeout(seconds):
                pid, _ = await connection.connect_pids(seconds)
                task.follow_pid(pid)
                state = await connection.state("", seconds)
        except errors.NotFound:
            log.info("%s was never made whole, removing it", task)
            await self._ending.abandon(task)
            return
        except (errors.NodeError, TimeoutError) as error:
            if task.died.is_set():
                await self._bury(task)
                return
            log.warning("the shim of %s does not answer: %s; it is kept", task, error)
            self._keep(task)
            return
        task.init.pid = state.pid
        if task.seen is None:
            task.see()
        self._adopt(task)
        if state.status is Status.STOPPED:
            known = self._service.notes.exit_was_seen(task.bundle)
            how = Exit(state.exit_status, state.exited_at, state.pid)
            task.exited(task.init, how)
            if not known:
                self._service.node.exited(task.namespace, task.name, "", how)
        else:
            task.watch(task.init)
            await self._find_execs(task, connection)

    async def _find_execs(self, task: Task, connection: Connection) -> None:
        """Wait for the exits of the execs too. The list of the task's pids names them."""
        try:
            for info in await connection.pids(self._service.config.state_timeout):
                exec_id = exec_id_of(info)
                if exec_id:
                    process = task.watched(exec_id)
                    process.pid = info.pid
                    task.watch(process)
        except errors.NodeError as error:
            log.debug("pids of %s: %s", task, error)
