"""What became of the tasks that were there before this start of the service.

They are found by their bundles, and by their sightings where a bundle was removed by hand. Each is asked for at its
shim, and is then one of four:

* The shim answers: the task is known again, and an exit that nobody saw is published.
* It does not answer, though somebody listens: it is slow, and kept.
* Nobody listens, or its process is dead: it is buried.
* There is no address, or the shim knows of no such task: it is half of a create. The shim is ended, and what it made
  is removed.

Where that cannot be found out, as the bundle cannot be read or no process can be started, the task is in *doubt*: it
may run, and another would be started beside it. It is shown as UNKNOWN, its name is taken, and it is looked at again
with growing pauses, at once when it is killed or deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil

from services.kit import errors
from services.tasks.bundle import TASKS, Bundle
from services.tasks.burial import AGAIN, AGAIN_AT_MOST, ENDING, Burial
from services.tasks.convert import exec_id_of
from services.tasks.ending import Ending
from services.tasks.names import Doubt, Names
from services.tasks.service import Key, Service
from services.tasks.shim import Connection
from services.tasks.store import Exit, Status
from services.tasks.task import Task, nobody_listens

log = logging.getLogger(__name__)

SECONDS = 2.0
"""For which a start waits until all tasks were looked at once."""


class Loading:
    """At the start of one service, which waits for at most ``seconds``."""

    def __init__(
        self, service: Service, names: Names, burial: Burial, ending: Ending, *, seconds: float = SECONDS
    ) -> None:
        self._service, self._names = service, names
        self._burial, self._ending = burial, ending
        self._seconds = seconds

    async def load(self) -> None:
        """Find the shims that run. Those that answer are known when this returns; slow ones soon after, and until
        then their names are taken.
        """
        limit = asyncio.Semaphore(self._service.config.load_parallel)
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

    async def look_again(self, key: Key) -> None:
        """Look now at a task of which it is not known what has become, and wait for that."""
        doubt = self._names.doubts.get(key)
        if doubt is None:
            return
        config = self._service.config
        doubt.hurried.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * (config.load_timeout + config.cleanup_timeout + ENDING)):
                for _ in range(1 + doubt.trying):  # a look that began earlier tells nothing of now
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
        for key in self._service.notes.sighted():  # whose bundle was removed by hand
            if not (bundle := self._service.bundle(*key)).path.exists():
                found.append(bundle)
        return found

    def _remove_orphans(self, here: set[Key]) -> None:
        """Work directories outlive a reboot, bundles do not. Remove those, and what was noted of tasks that are no
        more; not of those that were ``here`` at the start: a bundle that was removed by hand may be back only soon.
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
        claim: contextlib.AbstractContextManager[None],
        limit: asyncio.Semaphore,
    ) -> None:
        """Find out what became of a task, however often that must be tried."""
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
                # since the claim was given up nobody else has run: the name is never free
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
            if self._names.tasks.get(task.key) is not task:  # it is to be looked at anew
                task.leaves()
                await task.close()
            raise

    async def _load_task(self, task: Task) -> None:
        if task.seen is None and not any(task.bundle.path.iterdir()):
            await self._burial.forget(task)
            return
        task.mend()
        task.open_log()
        if (address := task.address()) is None:
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
        """Wait for its burial only as long as the first try takes: others are to be loaded."""
        self._burial.begin(task)
        await self._burial.begun(task)

    def _adopt(self, task: Task) -> None:
        self._names.tasks[task.key] = task
        task.follow(self._burial.begin)

    def _keep(self, task: Task) -> None:
        """A slow shim is known without having been asked; what it could not tell yet is learnt from its Wait."""
        task.init.pid = task.seen.pid if task.seen else 0
        self._adopt(task)
        waiting = task.watch(task.init)
        if task.init.pid and not self._service.notes.exit_was_seen(task.bundle):
            self._service.spawn(self._tell_exit(task, waiting))

    async def _tell_exit(self, task: Task, waiting: asyncio.Task[Exit]) -> None:
        """Publish the exit, which nobody may have heard of. The gateway drops it if its shim has told it too."""
        self._service.node.exited(task.namespace, task.name, "", await waiting)

    async def _examine(self, task: Task, connection: Connection | None) -> None:
        """Ask a shim that was found what has become of its task."""
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
        """Wait for the execs that run, too. Shims name them where they list a task's pids."""
        try:
            for info in await connection.pids(self._service.config.state_timeout):
                exec_id = exec_id_of(info)
                if exec_id:
                    process = task.watched(exec_id)
                    process.pid = info.pid
                    task.watch(process)
        except errors.NodeError as error:
            log.debug("pids of %s: %s", task, error)
