"""The tasks of this node: creating them, and passing each request to the right shim.

How a shim is followed is told in ``task.py``, how tasks are found again after a start in ``loading.py``, how a shim is
ended in ``ending.py``, and how a dead one is cleaned up after in ``burial.py``. A shim that does not answer delays only
the requests for its own task.

Exits. One Wait for each process is outstanding at its shim, for any number of clients. The shim publishes the exit's
event itself. This service publishes it where that event may be lost: exits that are found at a start, exits while the
gateway was away, exits by the death of the shim, and the last exits before a 2.x shim ends. The gateway drops the
second of two events. A note on the disk tells the next start that an exit is known (``notes.py``).

Crashes. A bundle without an address, or whose shim does not know its task, is an interrupted create. It is undone at
the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Any, Self, TypeVar

from services.kit import errors, filters, identifiers, loops, rpc, tracing
from services.kit.faults import fault
from services.kit.slices import Lane
from services.oci import prepared
from services.oci.descriptors import Descriptor
from services.oci.mounts import Mount
from services.oci.opaque import Opaque
from services.tasks import checkpoint, checks, fifos, layers
from services.tasks import options as runtime_options
from services.tasks import spec as specs
from services.tasks.bundle import TASKS, Bundle
from services.tasks.burial import Burial
from services.tasks.config import Config
from services.tasks.ending import Ending
from services.tasks.loading import Loading
from services.tasks.names import DoubtfulError, Names
from services.tasks.service import ExitHook, GoneHook, Key, Service, prefixed
from services.tasks.shim import Connection, check_id_mapped_mounts
from services.tasks.store import (
    IO,
    Container,
    CreateOptions,
    Exit,
    Metric,
    Node,
    Process,
    ProcessInfo,
    Status,
    task_not_found,
)
from services.tasks.task import FOLLOWED, KILLED, Life, Task

log = logging.getLogger(__name__)
T = TypeVar("T")


class LocalTasks:
    """A :class:`services.tasks.store.Tasks` of real shims, below a root and a state directory. Use as ``async with``:
    entering finds the shims that run, leaving lets them run on.

    ``on_exit`` is called with namespace, name and exit when a task's init has ended, ``on_gone`` with namespace and
    name when a task is gone.
    """

    def __init__(
        self,
        root: Path,
        state: Path,
        node: Node,
        config: Config = Config(),
        on_exit: ExitHook | None = None,
        on_gone: GoneHook | None = None,
        *,
        connection: type[Connection] = Connection,
    ) -> None:
        self._node = node
        self._config = config
        self._lane = Lane()
        self._service = Service(root, state, node, config, on_exit, on_gone, connection)
        self._names = Names()
        self._burial = Burial(self._service, self._names)
        self._ending = Ending(self._service, self._names, self._burial)
        self._loading = Loading(self._service, self._names, self._burial, self._ending)
        self._endings = loops.Tasks()
        """The ends of shims whose tasks are deleted."""

    async def __aenter__(self) -> Self:
        self._service.notes.make()
        for base in (self._service.state / TASKS, self._service.root / TASKS):
            base.mkdir(parents=True, exist_ok=True, mode=0o711)
        await self._loading.load()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._endings.wait(self._config.shutdown_timeout)  # the next start would do it, with more work
        known = list(self._names.tasks.values())
        for task in known:
            task.leaves()
        await self._endings.cancel()
        await self._service.background.cancel()
        for task in known:
            await task.close()

    def gateway_returned(self, since: float) -> None:
        """The gateway is back, and was last there before ``since`` (seconds since 1970): publish the exits since
        then.
        """
        for task in self._names.tasks.values():
            for process in (task.init, *task.execs.values()):
                if process.exit is not None and process.exit.at is not None and process.exit.at >= (since - 2.0) * 1e9:
                    self._node.exited(task.namespace, task.name, process.exec_id, process.exit)

    # ---------------------------------------------------------------------------------------------- create

    async def create(self, namespace: str, name: str, options: CreateOptions) -> int:
        container = await self._node.container(namespace, name)
        about = {
            "container.id": name,
            "container.image.name": container.image,
            "splitd.snapshotter": container.snapshotter,
        }
        tracing.operation(**{key: value for key, value in about.items() if value})
        key = (namespace, name)
        # A deletion may be in its last steps. Of two creations one wins; the other finds its task, or gets its turn.
        await self._names.settled(key)
        if self._names.is_taken(key):
            raise errors.AlreadyExists(f"task {name}")
        abandoned = asyncio.Event()
        claim = self._names.claim(key, creating=True)
        try:
            return await rpc.shielded(
                self._create(self._service.bundle(namespace, name), container, options, abandoned, claim)
            )
        except asyncio.CancelledError:
            abandoned.set()
            raise

    async def _create(
        self,
        bundle: Bundle,
        container: Container,
        options: CreateOptions,
        abandoned: asyncio.Event,
        claim: contextlib.AbstractContextManager[object],
    ) -> int:
        with claim:
            bundle.validate()
            with prefixed("failed to start shim: failed to resolve runtime path: "):
                program = self._service.programs.find(options.runtime or container.runtime)
            chosen = runtime_options.read(program, options.options, container.runtime_options, self._service.runc_root)
            await checks.mounts(program, options.rootfs)
            await checks.stdio(program, options.io)
            with tracing.span("tasks.bundle"):
                image = await self._make_bundle(bundle, container, options, chosen.image)
            fault("tasks.bundle-made")
            task = Task(bundle, self._service.program(bundle, program), self._service)
            try:
                task.open_log()
                if container.spec is not None and await specs.looked_into(
                    container.spec.value, specs.uses_id_mapped_mounts
                ):
                    with prefixed("failed to validate OCI runtime features: "):
                        check_id_mapped_mounts(await task.program.features(chosen.given, self._config.call_timeout))
                rootfs: Sequence[Mount] = options.rootfs
                if prepared.needed(rootfs):
                    allowed = await task.program.allowed_mounts(chosen.given, self._config.call_timeout)
                    rootfs = await layers.mounted(bundle, rootfs, allowed)
                await self._start_shim(task, chosen.given)
                fault("tasks.shim-started")
                with (
                    prefixed("failed to create shim task: "),
                    tracing.span("tasks.shim.create", task=str(task)),
                    fifos.held(options.io) as waited_for,
                ):
                    making = task.converse(
                        lambda c: c.create(
                            bundle.path, rootfs, options.io, image, chosen.given, self._config.call_timeout
                        )
                    )
                    task.init.pid = await _or_abandoned(
                        loops.task(f"the create of {task}", making), abandoned, waited_for
                    )
                task.hold_root(options.rootfs)
                if abandoned.is_set():
                    raise errors.Cancelled(f"create task {bundle.id}")
                task.see()
            except BaseException:
                await self._undo(task)
                raise
            self._names.tasks[task.key] = task
            task.follow(self._burial.begin)
            task.watch(task.init)
            return task.init.pid

    async def _make_bundle(self, bundle: Bundle, container: Container, options: CreateOptions, image: str) -> str:
        """Make the bundle. Return the directory of the checkpoint to restore: ``image``, one that is fetched, or an
        empty string.
        """
        notes = self._service.notes
        try:
            if not image and options.checkpoint is not None:
                if "RestoreFromPath" in options.checkpoint.annotations:
                    # The CRI plugin restores so, and has the task started too.
                    raise errors.Unimplemented("restore from a path")
                image = str(notes.checkpoint_of(bundle))
                await checkpoint.load(self._node, bundle.namespace, options.checkpoint, Path(image))
            spec = container.spec.value if container.spec is not None and container.spec.value else None
            gid = await specs.looked_into(spec, specs.remapped_gid) if spec else 0
            try:
                bundle.create(spec, gid=gid)
            except FileExistsError:
                # There is no such task: the bundle was left by a deletion that failed halfway.
                task = Task(bundle, self._service.program_of(bundle), self._service)
                await self._ending.sweep(task)
                if task.life is not Life.GONE:
                    raise errors.FailedPrecondition(
                        f"task {bundle.id}: what one before it left cannot be removed: {task.cleaning.trouble}"
                    ) from None
                bundle.create(spec, gid=gid)
        except BaseException:
            notes.forget_checkpoint(bundle)
            raise
        return image

    async def _start_shim(self, task: Task, options: Opaque | None) -> None:
        with prefixed("failed to start shim: "), tracing.span("tasks.shim.start", task=str(task)):
            task.bundle.write_program(task.program.path)
            with prefixed("start failed: "):
                address = await task.program.start(options, self._config.call_timeout)
                fault("tasks.shim-running")
                task.bundle.write_address(address)
            self._names.is_made(task)
            with tracing.span("tasks.shim.connect"):
                await task.connect(address, 5.0)

    async def _undo(self, task: Task) -> None:
        """Remove everything that a failed create made; also a shim whose program did not say its address."""
        try:
            await (self._ending.abandon(task) if task.connection is not None else self._ending.sweep(task))
        except Exception:
            log.exception("what the failed creation of %s made could not all be removed", task)

    # ---------------------------------------------------------------------------------------------- asking

    async def _find(self, namespace: str, name: str) -> Task:
        """The task. Wait for one that is being created, as containerd does, or loaded. NotFound if there is none.

        ``nerdctl run -i`` needs the wait: if its input ends at once it closes stdin before its Create is answered, and
        tries that only once.
        """
        key = (namespace, name)
        task = await self._names.look(key)
        if task is None and (doubt := self._names.doubts.get(key)) is not None:
            raise DoubtfulError(f"task {name}: it may run, and what became of it cannot be found out: {doubt.trouble}")
        if task is None:
            # A missing container is reported first. Only the error's words depend on that, so a client that asks for a
            # task that it has just deleted (ctr run does, twice) is spared the two hops.
            if not self._names.has_just_ended(key):
                await self._node.container(namespace, name)
            raise errors.NotFound.verbatim(task_not_found(name))
        return task

    async def _ask(self, namespace: str, name: str, question: Callable[[Connection], Awaitable[T]]) -> T:
        return await (await self._find(namespace, name)).converse(question)

    # ---------------------------------------------------------------------------------------------- verbs

    async def start(self, namespace: str, name: str, exec_id: str = "") -> int:
        task = await self._find(namespace, name)
        pid = await task.converse(lambda c: c.start(exec_id, self._config.call_timeout))
        process = task.watched(exec_id)  # only now, since the exec may not exist
        process.pid = pid
        task.watch(process)
        return pid

    async def delete(self, namespace: str, name: str) -> Exit:
        await self._loading.look_again((namespace, name))
        task = await self._find(namespace, name)
        if task.life is Life.DEAD:
            with prefixed("failed to delete task: "):
                await self._burial.hurry(task)
            return task.init.exit or Exit(KILLED, time.time_ns(), task.init.pid)
        task.mend()
        return await rpc.shielded(self._delete(task))

    async def _delete(self, task: Task) -> Exit:
        missing: errors.NodeError | None = None
        how = Exit(0, None)
        with prefixed("failed to delete task: "):
            try:
                how = await task.converse(lambda c: c.delete("", self._config.call_timeout))
            except errors.NotFound as error:
                if task.life in (Life.ENDING, Life.GONE):  # another call has deleted it
                    raise
                missing = error  # a deletion before this one was not finished
            if task.life is Life.DEAD:  # the shim ended right after its answer; the burial removes the rest
                await self._burial.hurry(task)
                if missing is not None:
                    raise missing
            elif task.life is Life.LEFT:
                raise errors.Unavailable(f"task {task.name}: the tasks service ends")
        if task.life in FOLLOWED:
            self._take_down(task, how, told=missing is None)
        if missing is not None:
            raise missing
        return how

    def _take_down(self, task: Task, how: Exit, *, told: bool) -> None:
        """The shim has deleted the task: have the shim ended and the rest removed, behind the answer. Clients see
        nothing of the task any more, and a start of the service goes on with this. The name is taken meanwhile.
        """
        claim = self._names.claim(task.key)
        task.ends()
        del self._names.tasks[task.key]
        task.bundle.write_deletion(how)
        fault("tasks.deleted")
        self._endings.start(f"the end of {task}", self._end(task, claim, how, told=told))

    async def _end(
        self, task: Task, claim: contextlib.AbstractContextManager[object], how: Exit, *, told: bool
    ) -> None:
        with claim, tracing.background("tasks.end", task=str(task)):
            modern = task.connection is not None and task.connection.version >= 3
            ended = await self._ending.end(task)
            if told and (modern or not ended):
                self._tell_the_end(task, how)
            await (self._burial.forget(task) if ended else self._ending.clear_away(task))

    def _tell_the_end(self, task: Task, how: Exit) -> None:
        """Publish the last events of a shim. Shims of containerd 2.x end without waiting until their events are taken,
        and a killed shim does not wait either. The gateway drops events that it has already.
        """
        for process in (*task.execs.values(), task.init):
            if process.exit is not None and (process.exit.at or 0) > time.time_ns() - 30_000_000_000:
                self._node.exited(task.namespace, task.name, process.exec_id, process.exit)
        self._node.deleted(task.namespace, task.name, how)

    async def delete_process(self, namespace: str, name: str, exec_id: str) -> Exit:
        if not exec_id:  # a shim would delete the init, and only that
            raise errors.InvalidArgument.verbatim("exec id cannot be empty")
        task = await self._find(namespace, name)
        how = await task.converse(lambda c: c.delete(exec_id, self._config.call_timeout))
        task.execs.pop(exec_id, None)
        return how

    async def get(self, namespace: str, name: str, exec_id: str = "") -> Process:
        try:
            task = await self._find(namespace, name)
        except DoubtfulError:
            if exec_id:
                raise
            return Process(name, 0, Status.UNKNOWN)
        if task.life is Life.DEAD and not exec_id:
            return await self._burial.last_state(task)
        try:
            return await task.converse(lambda c: c.state(exec_id, self._config.state_timeout))
        except errors.DeadlineExceeded as error:
            if exec_id:
                raise
            # As containerd answers: a client may take an error for a task that does not run, and bury it.
            log.warning("state of %s: %s", task, error)
            return Process(task.name, task.init.pid, Status.UNKNOWN)

    async def list(self, namespace: str) -> Sequence[Process]:
        async def state(task: Task) -> Process | None:
            try:
                return (
                    await self._burial.last_state(task)
                    if task.life is Life.DEAD
                    else await task.converse(lambda c: c.state("", self._config.state_timeout))
                )
            except errors.NotFound:
                return None
            except errors.NodeError as error:
                log.warning("state of %s: %s", task, error)
                return Process(task.name, task.init.pid, Status.UNKNOWN)

        async def one(key: Key) -> Process | None:
            if (task := await self._names.look(key, self._config.state_timeout)) is not None:
                return await state(task)
            return Process(key[1], 0, Status.UNKNOWN) if key in self._names.found else None

        keys = sorted(key for key in {*self._names.tasks, *self._names.found} if key[0] == namespace)
        found = await asyncio.gather(*map(one, keys))
        return [process for process in found if process is not None]

    async def kill(self, namespace: str, name: str, exec_id: str, signal: int, *, everything: bool) -> None:
        # For an exec containerd does not pass ``everything`` on. runc finds everything by the cgroup, which a container
        # of the same name on another node of this machine shares. So where SIGKILL of the init is enough, as its pid
        # namespace ends with it, only the init is killed.
        await self._loading.look_again((namespace, name))
        task = await self._find(namespace, name)
        if task.life is Life.DEAD:
            await self._burial.hurry(task)
            return
        task.mend()
        with_init = (
            everything
            and not exec_id
            and signal == SIGKILL
            and (
                specs.own_pids(await asyncio.to_thread(task.bundle.spec)) or (task.seen is not None and task.seen.alone)
            )
        )
        if exec_id or with_init:
            everything = False
        try:
            await task.converse(lambda c: c.kill(exec_id, signal, everything, self._config.call_timeout))
        except errors.NodeError:
            # The task has ended already. runc reports that for its init, but not where everything is to be killed,
            # and clients kill everything before they delete by force.
            if not with_init or (await self.get(namespace, name)).status is not Status.STOPPED:
                raise
        if not exec_id and signal == SIGKILL:
            await self._thaw(namespace, name)

    async def _thaw(self, namespace: str, name: str) -> None:
        """Resume a paused task that was sent SIGKILL. In a frozen cgroup of version 1 the signal has no effect; runc
        thaws the cgroup itself, crun does not.
        """
        try:
            if (await self.get(namespace, name)).status in (Status.PAUSED, Status.PAUSING):
                await self.resume(namespace, name)
        except errors.NodeError as error:  # its runtime thawed it, and it is dead
            log.debug("thawing %s/%s, which was killed: %s", namespace, name, error)

    async def exec(self, namespace: str, name: str, exec_id: str, spec: Opaque | None, io: IO) -> None:
        if not exec_id:
            raise errors.InvalidArgument.verbatim("exec id cannot be empty")
        task = await self._find(namespace, name)
        with prefixed(f"invalid exec id {exec_id}: "):
            identifiers.validate(exec_id)
        checks.payload("spec", spec)
        await checks.stdio(task.program.path, io)
        await task.converse(lambda c: c.exec(exec_id, spec, io, self._config.call_timeout))

    async def resize(self, namespace: str, name: str, exec_id: str, width: int, height: int) -> None:
        await self._ask(namespace, name, lambda c: c.resize(exec_id, width, height, self._config.call_timeout))

    async def close_stdin(self, namespace: str, name: str, exec_id: str = "") -> None:
        await self._ask(namespace, name, lambda c: c.close_stdin(exec_id, self._config.call_timeout))

    async def pause(self, namespace: str, name: str) -> None:
        await self._ask(namespace, name, lambda c: c.pause(self._config.call_timeout))

    async def resume(self, namespace: str, name: str) -> None:
        await self._ask(namespace, name, lambda c: c.resume(self._config.call_timeout))

    async def pids(self, namespace: str, name: str) -> Sequence[ProcessInfo]:
        return await self._ask(namespace, name, lambda c: c.pids(self._config.call_timeout))

    async def update(self, namespace: str, name: str, resources: Opaque | None, annotations: Mapping[str, str]) -> None:
        task = await self._find(namespace, name)
        if checks.of_runc(task.program.path):  # others may take annotations alone
            checks.payload("resources", resources)
        await task.converse(lambda c: c.update(resources, annotations, self._config.call_timeout))

    async def metrics(self, namespace: str, filters_: Sequence[str]) -> Sequence[Metric]:
        wanted = await filters.parsed(filters_, self._lane)

        def fields(task: Task) -> filters.Adaptor:
            values = {"id": task.name, "namespace": task.namespace}
            return lambda path: (values[path[0]], True) if path[0] in values else ("", False)

        known = [task for (space, _), task in sorted(self._names.tasks.items()) if space == namespace]
        chosen = [task for task in known if wanted.match(fields(task))]
        return [m for m in await asyncio.gather(*map(self._stats, chosen)) if m is not None]

    async def all_metrics(self) -> Sequence[tuple[str, str, Metric]]:
        """The statistics of all tasks, each with its namespace and the path of its runtime's program."""
        tasks = sorted(self._names.tasks.items())
        answers = await asyncio.gather(*(self._stats(task) for _, task in tasks))
        return [
            (space, task.program.path, m) for ((space, _), task), m in zip(tasks, answers, strict=True) if m is not None
        ]

    async def _stats(self, task: Task) -> Metric | None:
        at = time.time_ns()
        try:
            return Metric(task.name, at, await task.converse(lambda c: c.stats(self._config.state_timeout)))
        except errors.NodeError as error:
            if not isinstance(error, errors.NotFound):
                log.warning("metrics of %s: %s", task, error)
            return None

    async def checkpoint(
        self, namespace: str, name: str, options: Opaque | None, *, lease: str = ""
    ) -> Sequence[Descriptor]:
        container = await self._node.container(namespace, name)
        task = await self._find(namespace, name)
        wanted = runtime_options.checkpoint_image(container.runtime, options)
        if wanted:
            await task.converse(lambda c: c.checkpoint(Path(wanted), options, self._config.call_timeout))
            return []
        image = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=self._service.notes.checkpoints))
        try:
            await task.converse(lambda c: c.checkpoint(image, options, self._config.call_timeout))
            return await checkpoint.store(self._node, namespace, lease, image, container)
        finally:
            await asyncio.to_thread(shutil.rmtree, image, ignore_errors=True)

    async def wait(self, namespace: str, name: str, exec_id: str = "") -> Exit:
        while (doubt := self._names.doubts.get((namespace, name))) is not None:
            with tracing.wait("lock", **{"splitd.wait.for": f"what became of task {name}"}):
                await doubt.tried.wait()
        task = await self._find(namespace, name)
        process = task.watched(exec_id)
        if process.exit is not None:
            return process.exit
        return await asyncio.shield(task.watch(process))


async def _or_abandoned(making: asyncio.Future[int], abandoned: asyncio.Event, waited_for: list[int]) -> int:
    """The answer of a shim's Create, which waits until the client opens its FIFOs. If the client has gone, they are
    opened here, so that the shim does not wait for ever.
    """
    giving_up = loops.task("the wait for a caller that gives up", abandoned.wait())
    either: set[asyncio.Future[Any]] = {making, giving_up}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        with fifos.other_side([] if making.done() else waited_for):
            return await making
    finally:
        giving_up.cancel()
        making.cancel()
