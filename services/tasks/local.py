"""The tasks of this node: which shims there are, what has become of each, and every verb handed to the right one.

How a shim is followed. Each task has a connection of its own to its shim, and, once the shim said who it is, a pidfd of
it. A connection that ends is made anew; only a shim whose process is dead, or whose socket nobody listens to, is
*buried*: its program's ``delete`` kills what is left, its exit (137) and deletion are published, its bundle goes. A
shim that does not answer is asked again and again, and holds up nobody but those who ask for it.

No task is forgotten before its processes are dead, whatever its shim's program does (:mod:`services.tasks.dead_shim`).
Where they cannot be ended, the task is shown as UNKNOWN, its name stays taken, and its exit untold; it is tried again
with growing pauses, at once when it is killed or deleted, and at the next start.

Nor is one that is there at a start, and of which it cannot be found out what has become, as its bundle is not to be
read or no process can be started: it is shown as UNKNOWN too, and looked at again in the same way.

How exits are learnt. One Wait per process is outstanding at its shim, whoever and how many wait here. The shim itself
sends the exit's event; this service publishes it only where that may have got lost: exits found when it starts, exits
while the gateway was away, those of the dead, and the last ones of 2.x shims. (The gateway drops the second of two.)
That a task's exit was seen is remembered by a file STATE/tasks/exits/NAMESPACE:ID, so that the next start does not
report it again.

What a crash leaves. A bundle without an address, or whose shim knows of no such task, is half of a create: the shim is
ended, what it made is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Any, Self, TypeVar

from services.kit import errors, filters, identifiers, loops, rpc, tracing
from services.kit.faults import fault
from services.kit.slices import Lane
from services.oci.descriptors import Descriptor
from services.oci.opaque import Opaque
from services.tasks import checkpoint, checks, dead_shim, fifos
from services.tasks import spec as specs
from services.tasks.bundle import TASKS, Address, Bundle
from services.tasks.config import Config
from services.tasks.convert import exec_id_of
from services.tasks.shim import Connection, Environment, Program, Programs, check_id_mapped_mounts, with_runc_root
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

log = logging.getLogger(__name__)
T = TypeVar("T")

KILLED = 128 + SIGKILL
_GROUPS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
"""Annotations by which runc's shim serves several tasks from one process, in its order."""

ExitHook = Callable[[str, str, Exit], None]
GoneHook = Callable[[str, str], None]

_AGAIN, _AGAIN_AT_MOST = 0.25, 60.0
"""Seconds until the cleaning up after a dead shim is tried again: after the first time, and at most."""
_ENDING = 5.0
"""Seconds for which killed processes are waited for each time."""

_REMEMBERED = 1.0
"""Seconds for which the container of a task that was here is taken to be there still."""


class _Watched:
    """A process whose exit is waited for."""

    __slots__ = ("exec_id", "exit", "pid", "waiter")

    def __init__(self, exec_id: str, pid: int = 0) -> None:
        self.exec_id = exec_id
        self.pid = pid
        self.exit: Exit | None = None
        self.waiter: asyncio.Task[Exit] | None = None


class _Task:
    """A task that is known here, and the way to its shim."""

    def __init__(self, bundle: Bundle, program: Program) -> None:
        self.bundle = bundle
        self.program = program
        self.connection: Connection | None = None
        self.changed = asyncio.Condition()
        self.gone = False
        """Deleted or buried: nothing more will come of it."""
        self.followed = False
        """Whether the end of its connection means that something happened to it."""
        self.init = _Watched("")
        self.execs: dict[str, _Watched] = {}
        self.shim_pid = 0
        self.seen: dead_shim.Sighting | None = None
        self.dying = False
        """Its shim is dead, and what that left is being cleaned up."""
        self.cleaning = False
        """It is being tried at this moment."""
        self.attempts = 0
        """How often that was tried in vain."""
        self.trouble = ""
        """Why, the last time."""
        self.hurried = asyncio.Event()
        self._pidfd = -1
        self._log = -1
        self.died = asyncio.Event()

    @property
    def namespace(self) -> str:
        return self.bundle.namespace

    @property
    def name(self) -> str:
        return self.bundle.id

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def watched(self, exec_id: str) -> _Watched:
        if not exec_id:
            return self.init
        found = self.execs.get(exec_id)
        if found is None:
            found = self.execs[exec_id] = _Watched(exec_id)
        return found

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def open_log(self) -> None:
        """Read what the shim logs, from before it starts: one whose log is full blocks."""
        try:
            with contextlib.suppress(FileExistsError):
                os.mkfifo(self.bundle.log, 0o700)
            self._log = os.open(self.bundle.log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            asyncio.get_running_loop().add_reader(self._log, self._copy_log)
        except OSError as error:  # it is only a log
            log.warning("log of %s: %s", self, error)

    def _copy_log(self) -> None:
        with contextlib.suppress(BlockingIOError):
            text = os.read(self._log, 1 << 16)
            sys.stderr.write(text.decode(errors="replace"))
            sys.stderr.flush()

    def follow_pid(self, pid: int) -> None:
        """Learn of the shim process's death."""
        self.shim_pid = pid
        if self._pidfd >= 0:
            return
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.died.set()
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._died)

    @property
    def has_pid(self) -> bool:
        return self._pidfd >= 0 or self.died.is_set()

    def kill_shim(self) -> bool:
        """Whether it is alive, as far as is known, and was sent SIGKILL."""
        if self._pidfd < 0 or self.died.is_set():
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, SIGKILL)
        return True

    def _died(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self.died.set()

    def close(self) -> None:
        """Let go of the log and the pidfd; nobody waits for the shim any more."""
        loop = asyncio.get_running_loop()
        for fd in (self._log, self._pidfd):
            if fd >= 0:
                loop.remove_reader(fd)
                os.close(fd)
        self._log = self._pidfd = -1
        self.died.set()


class _Doubt:
    """A task that was found at the start, as long as it is not known what has become of it."""

    __slots__ = ("hurried", "tried", "trouble", "trying")

    def __init__(self) -> None:
        self.trouble = ""
        """Why not; empty until it was looked at once."""
        self.trying = False
        """It is being looked at in this moment."""
        self.hurried = asyncio.Event()
        self.tried = asyncio.Event()
        """Set when it was looked at once more, and then another one takes its place."""

    def again(self) -> None:
        """It was looked at, with whatever result."""
        tried, self.tried = self.tried, asyncio.Event()
        tried.set()


class _DoubtfulError(errors.FailedPrecondition):
    """What became of a task cannot be found out."""


class LocalTasks:
    """A :class:`services.tasks.store.Tasks` of real shims, below a root and a state directory. Use as ``async with``:
    entering finds the shims that run.

    Leaving it leaves them alone. ``on_exit`` is told of every exit of a task's init (namespace, name, how), ``on_gone``
    of every task that is no more.
    """

    def __init__(
        self,
        root: Path,
        state: Path,
        node: Node,
        config: Config = Config(),
        on_exit: ExitHook | None = None,
        on_gone: GoneHook | None = None,
    ) -> None:
        self._root, self._state = root, state
        self._node = node
        self._config = config
        self._on_exit, self._on_gone = on_exit, on_gone
        self._programs = Programs()
        self._lane = Lane()
        self._environment = Environment(state / "containerd.sock", state / "containerd.sock.ttrpc", config.shim_env)
        self._tasks: dict[tuple[str, str], _Task] = {}
        self._ended: dict[tuple[str, str], float] = {}
        """When tasks that are no more went; those of the last moments."""
        self._busy: dict[tuple[str, str], asyncio.Event] = {}
        """Names that are being created or taken down ..."""
        self._creating: set[tuple[str, str]] = set()
        """... and which of them are being created."""
        self._loading: dict[tuple[str, str], Bundle] = {}
        """What was found at the start, and is still asked what has become of it ..."""
        self._doubts: dict[tuple[str, str], _Doubt] = {}
        """... and that in vain so far: it is shown as UNKNOWN, and its name is taken."""
        self._background = loops.Tasks()
        self._exits = state / "tasks" / "exits"
        self._sightings = state / "tasks" / "sightings"
        self._checkpoints = state / "tasks" / "checkpoints"

    # ---------------------------------------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        for directory in (self._exits, self._sightings, self._checkpoints):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for base in (self._state / TASKS, self._root / TASKS):
            base.mkdir(parents=True, exist_ok=True, mode=0o711)
        await self._load()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks.values():
            task.followed = False
        await self._background.cancel()
        for task in self._tasks.values():
            if task.connection is not None:
                await task.connection.close()
            task.close()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work that nobody waits for; it ends with the service, and its failure is logged."""
        job = self._background.keep(loops.task("a task's follower", work))
        job.add_done_callback(_log_failure)
        return job

    def names(self) -> list[tuple[str, str]]:
        """The tasks that are known: namespace and name."""
        return list(self._tasks)

    def gateway_returned(self, since: float) -> None:
        """The gateway was away since a moment before ``since`` (seconds since 1970): report the exits that it may
        not have been told.
        """
        for task in self._tasks.values():
            for process in (task.init, *task.execs.values()):
                if process.exit is not None and process.exit.at is not None and process.exit.at >= (since - 2.0) * 1e9:
                    self._node.exited(task.namespace, task.name, process.exec_id, process.exit)

    # ---------------------------------------------------------------------------------------------- create

    async def create(self, namespace: str, name: str, options: CreateOptions) -> int:
        container = await self._node.container(namespace, name)
        key = (namespace, name)
        if key not in self._tasks and key in self._busy:
            # A deletion may be in its last steps. Of two creations one wins, and the other finds the task, or its turn.
            await self._busy[key].wait()
        if key in self._tasks or key in self._busy or key in self._doubts:
            raise errors.AlreadyExists(f"task {name}")
        abandoned = asyncio.Event()
        claim = self._claim(key, creating=True)
        try:
            return await rpc.shielded(
                self._create(Bundle.of(self._root, self._state, namespace, name), container, options, abandoned, claim)
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
        claim: contextlib.AbstractContextManager[None],
    ) -> int:
        with claim:
            runtime = options.runtime or container.runtime
            chosen = (
                options.options if options.options is not None and options.options.value else container.runtime_options
            )
            image = checkpoint.restore_path(options.options)
            bundle.validate()
            with _prefixed("failed to start shim: failed to resolve runtime path: "):
                program = self._programs.find(runtime)
            checks.runtime_options("options", program, options.options)
            checks.runtime_options("the container's runtime options", program, container.runtime_options)
            await checks.mounts(program, options.rootfs)
            await checks.stdio(program, options.io)
            chosen = with_runc_root(chosen, program, self._state / "runc")
            try:
                if not image and options.checkpoint is not None:
                    if "RestoreFromPath" in options.checkpoint.annotations:
                        # the CRI plugin's way; it starts the task, too
                        raise errors.Unimplemented("restore from a path")
                    image = str(self._checkpoint_of(bundle))
                    await checkpoint.load(self._node, bundle.namespace, options.checkpoint, Path(image))
                await self._make_bundle(bundle, container.spec)
            except BaseException:
                self._forget_checkpoint(bundle)
                raise
            fault("tasks.bundle-made")
            task = _Task(bundle, Program(program, bundle, self._environment))
            try:
                task.open_log()
                if container.spec is not None and await specs.looked_into(
                    container.spec.value, specs.uses_id_mapped_mounts
                ):
                    with _prefixed("failed to validate OCI runtime features: "):
                        check_id_mapped_mounts(await task.program.features(chosen, self._config.call_timeout))
                await self._start_shim(task, chosen)
                fault("tasks.shim-started")
                with _prefixed("failed to create shim task: "), tracing.span("tasks.shim.create", task=str(task)):
                    assert task.connection is not None
                    with fifos.held(options.io) as waited_for:
                        making = loops.task(
                            f"the create of {task}",
                            self._converse(
                                task,
                                lambda c: c.create(
                                    bundle.path, options.rootfs, options.io, image, chosen, self._config.call_timeout
                                ),
                            ),
                        )
                        task.init.pid = await _or_abandoned(making, abandoned, waited_for)
                if abandoned.is_set():
                    raise errors.Cancelled(f"create task {bundle.id}")
                self._see(task)
            except BaseException:
                await self._undo(task)
                raise
            self._adopt(task)
            self._watch(task, task.init)
            self._spawn(self._identify(task))
            return task.init.pid

    def _claim(self, key: tuple[str, str], *, creating: bool = False) -> contextlib.AbstractContextManager[None]:
        """Nobody else creates or takes down the task from now until the context that this returns ends."""
        event = self._busy[key] = asyncio.Event()
        if creating:
            self._creating.add(key)

        @contextlib.contextmanager
        def claimed() -> Iterator[None]:
            try:
                yield
            finally:
                if creating:
                    self._creating.discard(key)
                if self._busy.get(key) is event:
                    del self._busy[key]
                event.set()

        return claimed()

    async def _make_bundle(self, bundle: Bundle, spec: Opaque | None) -> None:
        content = spec.value if spec is not None and spec.value else None
        gid = await specs.looked_into(content, specs.remapped_gid) if content else 0
        try:
            bundle.create(content, gid=gid)
        except FileExistsError:
            # Left by something that went wrong: there is no such task, so it is in nobody's way.
            task = _Task(bundle, self._program_of(bundle))
            await self._sweep(task)
            if not task.gone:
                raise errors.FailedPrecondition(
                    f"task {bundle.id}: what one before it left cannot be removed: {task.trouble}"
                ) from None
            bundle.create(content, gid=gid)

    async def _start_shim(self, task: _Task, options: Opaque | None) -> None:
        with _prefixed("failed to start shim: "), tracing.span("tasks.shim.start", task=str(task)):
            task.bundle.write_program(task.program.path)
            with _prefixed("start failed: "):
                address = await task.program.start(options, self._config.call_timeout)
                fault("tasks.shim-running")
                task.bundle.write_address(address)
            await self._connect(task, address, 5.0)

    async def _undo(self, task: _Task) -> None:
        """A create failed: leave nothing of it; nor a shim that runs, though its program did not say where."""
        try:
            await (self._abandon(task) if task.connection is not None else self._sweep(task))
        except Exception:
            log.exception("what the failed creation of %s made could not all be removed", task)

    def _checkpoint_of(self, bundle: Bundle) -> Path:
        """An empty directory for what a task is restored from; it stays as long as the task."""
        self._forget_checkpoint(bundle)
        path = self._checkpoints / f"{bundle.namespace}:{bundle.id}"
        path.mkdir(mode=0o700)
        return path

    def _forget_checkpoint(self, bundle: Bundle) -> None:
        path = self._checkpoints / f"{bundle.namespace}:{bundle.id}"
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)

    # ---------------------------------------------------------------------------------------------- shims

    def _program_of(self, bundle: Bundle, seen: dead_shim.Sighting | None = None) -> Program:
        return Program(
            bundle.program() or (seen.program if seen else "") or self._programs.find("io.containerd.runc.v2"),
            bundle,
            self._environment,
        )

    def _sighting(self, bundle: Bundle) -> Path:
        return self._sightings / f"{bundle.namespace}:{bundle.id}"

    def _see(self, task: _Task) -> None:
        """Write down what must be known to end the task whatever becomes of its bundle."""
        try:
            task.seen = dead_shim.see(task.bundle, task.program.path, _address(task), task.init.pid)
            task.seen.write(self._sighting(task.bundle))
        except OSError as error:
            log.warning("the sighting of %s: %s", task, error)

    def _adopt(self, task: _Task) -> None:
        """From here on the task is known, and its shim followed."""
        self._tasks[task.namespace, task.name] = task
        task.followed = True
        if task.has_pid:
            self._spawn(self._mourn(task))
        if task.connection is None:
            self._spawn(self._recover(task))

    async def _connect(self, task: _Task, address: Address, timeout: float) -> None:
        """Make the connection; Unavailable, caused by an OSError, if nobody listens."""
        connection = Connection(address, task.namespace, task.name, lambda: self._connection_lost(task, connection))
        try:
            await connection.connect(timeout)
        except BaseException:
            await connection.close()
            raise
        task.connection = connection
        await task.notify()

    async def _disconnect(self, task: _Task) -> None:
        connection, task.connection = task.connection, None
        if connection is not None:
            await connection.close()

    def _connection_lost(self, task: _Task, connection: Connection) -> None:
        if task.connection is not connection:
            return
        task.connection = None
        if task.followed and not task.gone:
            self._spawn(self._recover(task))

    def _mend(self, task: _Task) -> None:
        """Put a bundle that was removed back, as far as a shim needs it for killing and deleting."""
        if task.seen is not None and not task.bundle.path.exists():
            log.warning("the bundle of %s was removed", task)
            try:
                dead_shim.restore(task.bundle, task.seen)
            except OSError as error:
                log.warning("the bundle of %s: %s", task, error)

    async def _recover(self, task: _Task) -> None:
        """The connection ended: make it anew, or, if the shim is dead, bury its task."""
        pause = 0.005
        while not task.gone and not task.died.is_set():
            try:
                if (address := _address(task)) is None:
                    break
                await self._connect(task, address, 2.0)
            except Exception as error:  # whatever it is, the task has to be followed again
                if not isinstance(error, errors.NodeError | OSError | ValueError):
                    log.exception("connecting to the shim of %s", task)
                if not task.has_pid and _nobody_listens(error):
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(task.died.wait(), pause)
                pause = min(pause * 2, 5.0)
            else:
                # A shim that is dying takes connections. Nobody else notices if it died meanwhile: there was no
                # connection that could have been ended.
                if task.died.is_set():
                    await self._disconnect(task)
                    break
                await self._identify(task)
                return
        if task.gone or not task.followed:
            return
        await self._bury(task)

    async def _identify(self, task: _Task) -> None:
        """Ask the shim for its pid, however long it takes to answer."""
        pause = 0.1
        while not task.gone and not task.has_pid and (connection := task.connection) is not None:
            try:
                pid, _ = await connection.connect_pids(self._config.load_timeout)
                if pid:
                    task.follow_pid(pid)
                    self._spawn(self._mourn(task))
                return
            except errors.NodeError as error:
                log.debug("shim of %s: %s", task, error)
            except Exception:  # such as no more descriptors; a shim that is not known is not mourned
                log.exception("asking the shim of %s for its pid", task)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _mourn(self, task: _Task) -> None:
        """A dead shim is noticed even where its connection does not end with it (over gRPC)."""
        await task.died.wait()
        if task.followed and not task.gone and (connection := task.connection) is not None:
            await connection.close()
            if task.connection is connection:
                self._connection_lost(task, connection)

    async def _bury(self, task: _Task, *, told: bool = True) -> None:
        """The shim is dead: kill and unmount what it left, however often that must be tried, tell of it, forget it.
        Not ``told``: of a task that was never made.
        """
        log.info("the shim of %s is dead, cleaning up", task)
        self._take_down(task)
        with self._claim((task.namespace, task.name)):
            pause = _AGAIN
            while (died := await self._clean(task)) is None:
                log.log(
                    logging.WARNING if task.attempts <= 3 else logging.DEBUG,
                    "%s: what its dead shim left is still there (%s), next try within %g s",
                    task,
                    task.trouble,
                    pause,
                )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(task.hurried.wait(), pause)
                task.hurried.clear()
                pause = min(pause * 2, _AGAIN_AT_MOST)
            how = task.init.exit or died
            if told and (task.bundle.init_pid() or task.init.pid):
                for process in task.execs.values():
                    if process.exit is None and process.pid:
                        process.exit = Exit(KILLED, died.at, process.pid)
                        self._node.exited(task.namespace, task.name, process.exec_id, process.exit)
                if task.init.exit is None:
                    self._exited(task, task.init, how)
                self._node.exited(task.namespace, task.name, "", how)
                self._node.deleted(task.namespace, task.name, how)
            await self._forget(task)

    def _take_down(self, task: _Task) -> None:
        """From here on the task only waits for its end, and its name is taken until then."""
        task.followed = False
        task.dying = True
        self._tasks[task.namespace, task.name] = task

    async def _clean(self, task: _Task) -> Exit | None:
        """Have the program's ``delete`` do its work, and end what that leaves alive; how the task ended. None, and
        ``task.trouble`` says why, where it is to be tried again.

        The program may say that all is well though its runtime failed, and fail for want of a file in the bundle: what
        counts is that the processes are dead. Then it is tried once more, for cgroups and the runtime's state, and no
        longer.
        """
        task.cleaning = True
        try:
            died, trouble = await self._cleaned(task)
        # such as no more threads; whatever it is, the task is neither forgotten nor given up
        except Exception as error:
            if not isinstance(error, OSError):
                log.exception("cleaning up after the dead shim of %s", task)
            died, trouble = None, f"it cannot be cleaned up: {error}"
        finally:
            task.cleaning = False
        if died is None:
            task.trouble = trouble
            task.attempts += 1
            await task.notify()
        return died

    async def _cleaned(self, task: _Task) -> tuple[Exit | None, str]:
        """How the task ended, or why that is not known. OSError where its processes cannot be looked for: that
        tells nothing of them.
        """
        died, trouble = None, ""
        try:
            if task.seen is None:
                task.seen = dead_shim.read(self._sighting(task.bundle)) or dead_shim.in_bundle(
                    task.bundle, task.program.path, self._state / "runc"
                )
            dead_shim.restore(task.bundle, task.seen)
            self._ensure_runc_files(task)
            pid = task.init.pid or task.bundle.init_pid() or task.seen.pid
            task.init.pid = pid
            died = await task.program.delete(self._config.cleanup_timeout)
        except (errors.NodeError, OSError, ValueError) as error:
            trouble = str(error)
        if task.seen is not None and (left := await asyncio.to_thread(dead_shim.end, task.seen, _ENDING)):
            return None, f"{', '.join(map(str, left))} cannot be killed"
        if died is None and task.attempts and task.seen is not None:
            died = Exit(KILLED if task.init.pid else 255, time.time_ns(), task.init.pid)
        if died is None:
            return None, trouble
        # of a runtime that could not
        await asyncio.to_thread(shutil.rmtree, self._state / "runc" / task.namespace / task.name, ignore_errors=True)
        return Exit(died.status, died.at, died.pid or task.init.pid), ""

    async def _hurry(self, task: _Task) -> None:
        """Clean up after a dead shim now; FailedPrecondition with what is in the way, if it is still."""
        before = task.attempts + task.cleaning  # one that began earlier tells nothing of now
        task.hurried.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * (self._config.cleanup_timeout + _ENDING) + 1.0), task.changed:
                await task.changed.wait_for(lambda: task.gone or task.attempts > before)
        if not task.gone:
            raise _in_the_way(task)

    async def _last_state(self, task: _Task) -> Process:
        """UNKNOWN; NotFound if its end is a matter of moments."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.state_timeout), task.changed:
                await task.changed.wait_for(lambda: task.gone or task.trouble)
        if task.gone:
            raise errors.NotFound.verbatim(task_not_found(task.name))
        return Process(task.name, task.init.pid, Status.UNKNOWN)

    def _ensure_runc_files(self, task: _Task) -> None:
        """The shim of runc reads its state directory from the bundle; one that died before it wrote it would look in
        the machine's, and delete others' containers.

        It also wants to read there which program is runc: nothing in the file is its own choice.
        """
        if not checks.of_runc(task.program.path):
            return
        for name, text in (("options.json", json.dumps({"root": str(self._state / "runc")})), ("runtime", "")):
            if not (path := task.bundle.path / name).exists():
                path.write_text(text)

    async def _forget(self, task: _Task) -> None:
        """Nothing runs any more: remove the bundle and the entry."""
        self._sighting(task.bundle).unlink(missing_ok=True)  # first: a bundle without it is only looked at once more
        try:
            if task.bundle.mounted():
                await asyncio.to_thread(task.bundle.delete)
            else:
                task.bundle.delete()  # a dozen small files: less than the way to a thread takes
        except OSError as error:
            log.error("bundle of %s: %s", task, error)
        (self._exits / f"{task.namespace}:{task.name}").unlink(missing_ok=True)
        self._forget_checkpoint(task.bundle)
        if self._tasks.get((task.namespace, task.name)) is task:
            del self._tasks[task.namespace, task.name]
        task.gone = True
        self._remember(task.namespace, task.name)
        if self._on_gone is not None:
            self._on_gone(task.namespace, task.name)
        await self._disconnect(task)
        task.close()
        await task.notify()

    async def _abandon(self, task: _Task) -> None:
        """End a shim whose task was never made or is to be undone, and remove all that either left."""
        task.followed = False
        if task.connection is not None:
            with contextlib.suppress(errors.NodeError):
                pid, _ = await task.connection.connect_pids(self._config.state_timeout)
                task.follow_pid(pid)
            with contextlib.suppress(errors.NodeError):
                await task.connection.delete("", self._config.cleanup_timeout)
            await self._end_shim(task)
        await self._clear_away(task)

    async def _clear_away(self, task: _Task) -> None:
        """Remove all that a shim left which has ended, or was killed, and forget the task; where that fails, it is
        tried again, and the name is taken until then.
        """
        if (
            (task.bundle.path.exists() or task.seen)
            and await self._clean(task) is None
            and await self._clean(task) is None
        ):
            self._take_down(task)
            self._spawn(self._bury(task, told=False))
            return
        await self._forget(task)

    def _shared(self, task: _Task) -> bool:
        """Whether the shim serves another task that is known here, or is about to be."""
        own, path = _readable_address(task), task.bundle.path
        return own is not None and own.address in {
            *(
                other.address
                for known in self._tasks.values()
                if known is not task and (other := _readable_address(known)) is not None
            ),
            *(
                other.address
                for bundle in self._loading.values()
                if bundle.path != path and (other := bundle.readable_address()) is not None
            ),
        }

    async def _end_shim(self, task: _Task) -> bool:
        """Ask the shim to end, and wait until it has, unless it serves other tasks; one that does not is killed.
        Whether it ended by itself, and so left nothing.
        """
        connection = task.connection
        if connection is not None:
            try:
                async with asyncio.timeout(self._config.shutdown_timeout):
                    try:
                        await connection.shutdown(self._config.shutdown_timeout)
                    except errors.Unavailable as error:
                        log.debug("shim of %s: %s", task, error)
                    if not self._shared(task):
                        await (task.died.wait() if task.has_pid else connection.closed())
                return True
            except (errors.NodeError, TimeoutError) as error:
                log.warning("the shim of %s did not shut down: %s", task, error if str(error) else "timed out")
        if self._shared(task):
            return True
        if task.kill_shim():
            log.warning("the shim of %s does not end: killing it", task)
            try:
                await asyncio.wait_for(task.died.wait(), _ENDING)
            except TimeoutError:
                log.error("the shim of %s (pid %d) was killed, and is there still", task, task.shim_pid)
        return False

    # ---------------------------------------------------------------------------------------------- after a start

    async def _load(self) -> None:
        """Find the shims that run. Those that answer are known when this returns; slow ones soon after, and until
        then their names are taken.
        """
        limit = asyncio.Semaphore(self._config.load_parallel)
        self._loading = {(bundle.namespace, bundle.id): bundle for bundle in self._bundles()}
        looked = []
        for key, bundle in self._loading.items():
            doubt = _Doubt()
            looked.append(doubt.tried)
            self._spawn(self._load_one(bundle, doubt, self._claim(key), limit))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                for tried in looked:
                    await tried.wait()
        await asyncio.to_thread(self._remove_orphans)

    async def _load_one(
        self, bundle: Bundle, doubt: _Doubt, claim: contextlib.AbstractContextManager[None], limit: asyncio.Semaphore
    ) -> None:
        """Find out what became of a task, however often that must be tried: one that nobody knows of runs on, and
        another would be started beside it.
        """
        key, pause, attempts = (bundle.namespace, bundle.id), _AGAIN, 0
        try:
            while True:
                doubt.trying = True
                try:
                    with claim:
                        async with limit:
                            await self._load_bundle(bundle)
                    return
                except Exception as error:
                    if key in self._tasks:
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
                self._doubts[key] = doubt
                doubt.again()
                claim = contextlib.nullcontext()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(doubt.hurried.wait(), pause)
                doubt.hurried.clear()
                pause = min(pause * 2, _AGAIN_AT_MOST)
        finally:
            del self._loading[key]
            self._doubts.pop(key, None)
            doubt.again()

    async def _look_again(self, key: tuple[str, str]) -> None:
        """Look now at a task of which it is not known what has become, and wait for that."""
        doubt = self._doubts.get(key)
        if doubt is None:
            return
        doubt.hurried.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * (self._config.load_timeout + self._config.cleanup_timeout + _ENDING)):
                for _ in range(1 + doubt.trying):  # a look that began earlier tells nothing of now
                    if self._doubts.get(key) is doubt:
                        await doubt.tried.wait()

    def _bundles(self) -> list[Bundle]:
        found = []
        for space in sorted((self._state / TASKS).iterdir()):
            if space.name.startswith(".") or not space.is_dir():
                continue
            for path in sorted(space.iterdir()):
                if path.name.startswith("."):
                    shutil.rmtree(path, ignore_errors=True)  # half deleted
                elif path.is_dir():
                    found.append(Bundle.of(self._root, self._state, space.name, path.name))
        for seen in sorted(self._sightings.iterdir()):  # whose bundle was removed by hand
            namespace, _, name = seen.name.partition(":")
            if (
                not seen.name.startswith(".")
                and not (bundle := Bundle.of(self._root, self._state, namespace, name)).path.exists()
            ):
                found.append(bundle)
        return found

    def _remove_orphans(self) -> None:
        """Work directories outlive a reboot, bundles do not; and exits and checkpoints of tasks that are no more."""
        for path in (self._root / TASKS).glob("*/*"):
            if not (self._state / TASKS / path.parent.name / path.name.removeprefix(".")).exists():
                shutil.rmtree(path, ignore_errors=True)
        for mark in self._exits.iterdir():
            if not (self._state / TASKS / mark.name.replace(":", "/", 1)).exists():
                mark.unlink(missing_ok=True)
        for image in self._checkpoints.iterdir():
            if not (self._state / TASKS / image.name.replace(":", "/", 1)).exists():
                shutil.rmtree(image, ignore_errors=True)

    async def _load_bundle(self, bundle: Bundle) -> None:
        seen = dead_shim.read(self._sighting(bundle))
        task = _Task(bundle, self._program_of(bundle, seen))
        task.seen = seen
        try:
            await self._load_task(task)
        except BaseException:
            if self._tasks.get((task.namespace, task.name)) is not task:  # it is to be looked at anew
                await self._disconnect(task)
                task.close()
            raise

    async def _load_task(self, task: _Task) -> None:
        bundle = task.bundle
        if task.seen is None and not any(bundle.path.iterdir()):
            await self._forget(task)
            return
        self._mend(task)
        task.open_log()
        if (address := _address(task)) is None:
            log.info("%s was never made whole, removing it", task)
            await self._sweep(task)
            return
        try:
            await self._connect(task, address, self._config.load_timeout)
        except errors.NodeError as error:
            if _nobody_listens(error):
                await self._begin_to_bury(task)
                return
            log.warning("shim of %s: %s; it is kept", task, error)
            self._adopt(task)
            return
        await self._examine(task)

    async def _begin_to_bury(self, task: _Task) -> None:
        """Bury it, and wait for that only as long as the first try takes: others are to be loaded."""
        self._take_down(task)
        self._spawn(self._bury(task))
        async with task.changed:
            await task.changed.wait_for(lambda: task.gone or task.trouble)

    async def _examine(self, task: _Task) -> None:
        """Ask a shim that was found what has become of its task."""
        connection = task.connection
        assert connection is not None
        try:
            async with asyncio.timeout(self._config.load_timeout):
                pid, _ = await connection.connect_pids(self._config.load_timeout)
                if pid:
                    task.follow_pid(pid)
                state = await connection.state("", self._config.load_timeout)
        except errors.NotFound:
            log.info("%s was never made whole, removing it", task)
            await self._abandon(task)
            return
        except (errors.NodeError, TimeoutError) as error:
            if task.died.is_set():
                await self._begin_to_bury(task)
                return
            log.warning("the shim of %s does not answer: %s; it is kept", task, error)
            self._adopt(task)
            self._watch(task, task.init)
            self._spawn(self._identify(task))
            return
        task.init.pid = state.pid
        if task.seen is None:
            self._see(task)
        self._adopt(task)
        if state.status is Status.STOPPED:
            known = (self._exits / f"{task.namespace}:{task.name}").exists()
            self._exited(task, task.init, Exit(state.exit_status, state.exited_at, state.pid))
            if not known:
                self._node.exited(task.namespace, task.name, "", Exit(state.exit_status, state.exited_at, state.pid))
        else:
            self._watch(task, task.init)
            await self._find_execs(task, connection)

    async def _find_execs(self, task: _Task, connection: Connection) -> None:
        """Wait for the execs that run, too. Shims name them where they list a task's pids."""
        try:
            for info in await connection.pids(self._config.state_timeout):
                exec_id = exec_id_of(info)
                if exec_id:
                    process = task.watched(exec_id)
                    process.pid = info.pid
                    self._watch(task, process)
        except errors.NodeError as error:
            log.debug("pids of %s: %s", task, error)

    async def _sweep(self, task: _Task) -> None:
        """Remove half of a create. The shim may run although its address was not written down: runc's has a socket
        that can be computed.
        """
        for address in (
            task.bundle.readable_address(),
            task.seen.address if task.seen else None,
            self._expected_address(task.bundle),
        ):
            if address is not None:
                with contextlib.suppress(errors.NodeError):
                    await self._connect(task, address, 1.0)
                    break
        await self._abandon(task)

    def _expected_address(self, bundle: Bundle) -> Address | None:
        annotations = bundle.spec().get("annotations") or {}
        if any(group in annotations for group in _GROUPS):
            return None  # the shim of somebody else's task, perhaps
        digest = hashlib.sha256(f"{self._environment.grpc_address}/{bundle.namespace}/{bundle.id}".encode()).hexdigest()
        path = f"/run/containerd/s/{digest}"
        return Address("ttrpc", f"unix://{path}", 3) if os.path.exists(path) else None

    # ---------------------------------------------------------------------------------------------- exits

    def _watch(self, task: _Task, process: _Watched) -> asyncio.Task[Exit]:
        """The one Wait for a process."""
        if process.waiter is None or (process.waiter.done() and process.exit is None):
            process.waiter = self._spawn(self._await_exit(task, process))
        return process.waiter

    async def _await_exit(self, task: _Task, process: _Watched) -> Exit:
        while process.exit is None:
            try:
                connection = await self._usable(task, None)
            except errors.FailedPrecondition:  # its shim is dead, but not yet what that left
                async with task.changed:
                    await task.changed.wait_for(lambda: task.gone)
                continue
            except errors.NotFound:
                if process.exit is None:
                    raise
                break  # its shim is dead
            try:
                exit_ = await connection.wait(process.exec_id)
            except errors.Unavailable:
                if task.connection is connection:  # over gRPC the call may know first
                    await asyncio.sleep(0.2)
                continue
            except errors.NodeError:
                if process.exec_id and not process.pid and task.execs.get(process.exec_id) is process:
                    del task.execs[process.exec_id]  # nobody knows that there is such an exec
                raise
            self._exited(task, process, Exit(exit_.status, exit_.at, process.pid))
            if not self._node.reachable and process.pid:
                assert process.exit is not None
                self._node.exited(task.namespace, task.name, process.exec_id, process.exit)
        return process.exit

    def _exited(self, task: _Task, process: _Watched, how: Exit) -> None:
        process.exit = how
        if process.exec_id:
            return
        with contextlib.suppress(OSError):
            os.close(
                os.open(self._exits / f"{task.namespace}:{task.name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            )
        if self._on_exit is not None:
            self._on_exit(task.namespace, task.name, how)

    # ---------------------------------------------------------------------------------------------- asking

    async def _find(self, namespace: str, name: str) -> _Task:
        """The task; one that is being created is waited for, as containerd's shim has the others wait, and so is one
        that is still looked at after the start. NotFound if there is none.

        A client whose input ends at once asks to close it before its Create is answered, and tries that only once
        (nerdctl run -i).
        """
        key = (namespace, name)
        if (
            key not in self._tasks
            and (key in self._creating or key in self._loading)
            and (busy := self._busy.get(key)) is not None
        ):
            await busy.wait()
        task = self._tasks.get(key)
        if task is None and (doubt := self._doubts.get(key)) is not None:
            raise _DoubtfulError(f"task {name}: it may run, and what became of it cannot be found out: {doubt.trouble}")
        if task is None:
            # The absence of a container comes first. That is only about the error's words, and clients ask for a task
            # that they have just deleted (ctr run twice): two hops less each time.
            if self._ended.get(key, -_REMEMBERED) < time.monotonic() - _REMEMBERED:
                await self._node.container(namespace, name)
            raise errors.NotFound.verbatim(task_not_found(name))
        return task

    def _remember(self, namespace: str, name: str) -> None:
        now = time.monotonic()
        for key in [k for k, at in self._ended.items() if at < now - _REMEMBERED]:
            del self._ended[key]
        self._ended[namespace, name] = now

    async def _usable(self, task: _Task, seconds: float | None) -> Connection:
        """The connection, waited for while it is being made anew; NotFound once the task is gone."""
        if task.connection is not None:
            return task.connection
        try:
            async with asyncio.timeout(seconds), task.changed:
                await task.changed.wait_for(lambda: task.gone or task.connection is not None or task.trouble)
        except TimeoutError:
            raise errors.Unavailable(f"the shim of task {task.name} does not answer") from None
        if task.connection is None:
            raise errors.NotFound.verbatim(task_not_found(task.name)) if task.gone else _in_the_way(task)
        return task.connection

    async def _converse(self, task: _Task, question: Callable[[Connection], Awaitable[T]]) -> T:
        """Ask a shim. One that is lost meanwhile is asked no second time; if it was dead, there is no such task any
        more.
        """
        connection = await self._usable(task, self._config.load_timeout)
        try:
            return await question(connection)
        except errors.Unavailable:
            if task.connection is connection or not (task.followed or task.gone):
                raise
            await self._usable(task, self._config.cleanup_timeout * 2 + 1.0)
            raise errors.Unavailable(
                f"the connection to the shim of task {task.name} was lost, and is there again"
            ) from None

    async def _ask(self, namespace: str, name: str, question: Callable[[Connection], Awaitable[T]]) -> T:
        return await self._converse(await self._find(namespace, name), question)

    # ---------------------------------------------------------------------------------------------- verbs

    async def start(self, namespace: str, name: str, exec_id: str = "") -> int:
        task = await self._find(namespace, name)
        pid = await self._converse(task, lambda c: c.start(exec_id, self._config.call_timeout))
        process = task.watched(exec_id)  # only now: what a client names need not be there
        process.pid = pid
        self._watch(task, process)
        return pid

    async def delete(self, namespace: str, name: str) -> Exit:
        await self._look_again((namespace, name))
        task = await self._find(namespace, name)
        if task.dying:
            with _prefixed("failed to delete task: "):
                await self._hurry(task)
            return task.init.exit or Exit(KILLED, time.time_ns(), task.init.pid)
        self._mend(task)
        return await rpc.shielded(self._delete(task))

    async def _delete(self, task: _Task) -> Exit:
        missing: errors.NodeError | None = None
        how = Exit(0, None)
        with _prefixed("failed to delete task: "):
            try:
                how = await self._converse(task, lambda c: c.delete("", self._config.call_timeout))
            except errors.NotFound as error:
                if task.gone or (task.namespace, task.name) in self._busy:
                    raise
                missing = error  # deleted before, but not taken down
            if task.dying:  # its shim ended as soon as it had answered: whoever buries it removes the rest
                await self._hurry(task)
                if missing is not None:
                    raise missing
                return how
        with self._claim((task.namespace, task.name)):
            task.followed = False
            self._tasks.pop((task.namespace, task.name), None)
            modern = task.connection is not None and task.connection.version >= 3
            fault("tasks.deleted")
            ended = await self._end_shim(task)
            if missing is None and (modern or not ended):
                self._tell_the_end(task, how)
            await (self._forget(task) if ended else self._clear_away(task))
        if missing is not None:
            raise missing
        return how

    def _tell_the_end(self, task: _Task, how: Exit) -> None:
        """Shims of containerd 2.x end without waiting for their last events to be taken, and those that were killed
        have not waited: tell what those were. (Told twice they are dropped.)
        """
        for process in (*task.execs.values(), task.init):
            if process.exit is not None and (process.exit.at or 0) > time.time_ns() - 30_000_000_000:
                self._node.exited(task.namespace, task.name, process.exec_id, process.exit)
        self._node.deleted(task.namespace, task.name, how)

    async def delete_process(self, namespace: str, name: str, exec_id: str) -> Exit:
        if not exec_id:  # a shim would take it for the init, and delete that alone
            raise errors.InvalidArgument.verbatim("exec id cannot be empty")
        task = await self._find(namespace, name)
        how = await self._converse(task, lambda c: c.delete(exec_id, self._config.call_timeout))
        task.execs.pop(exec_id, None)
        return how

    async def get(self, namespace: str, name: str, exec_id: str = "") -> Process:
        try:
            task = await self._find(namespace, name)
        except _DoubtfulError:
            if exec_id:
                raise
            return Process(name, 0, Status.UNKNOWN)
        if task.dying and not exec_id:
            return await self._last_state(task)
        return await self._converse(task, lambda c: c.state(exec_id, self._config.state_timeout))

    async def list(self, namespace: str) -> Sequence[Process]:
        async def state(task: _Task) -> Process | None:
            try:
                return (
                    await self._last_state(task)
                    if task.dying
                    else await self._converse(task, lambda c: c.state("", self._config.state_timeout))
                )
            except errors.NotFound:
                return None
            except errors.NodeError as error:
                log.warning("state of %s: %s", task, error)
                return Process(task.name, task.init.pid, Status.UNKNOWN)

        async def loading(key: tuple[str, str]) -> Process | None:
            if (busy := self._busy.get(key)) is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(busy.wait(), self._config.state_timeout)
            if (task := self._tasks.get(key)) is not None:
                return await state(task)
            return Process(key[1], 0, Status.UNKNOWN) if key in self._loading else None

        names = sorted(key for key in {*self._tasks, *self._loading} if key[0] == namespace)
        found = await asyncio.gather(
            *(state(self._tasks[key]) if key in self._tasks else loading(key) for key in names)
        )
        return [process for process in found if process is not None]

    async def kill(self, namespace: str, name: str, exec_id: str, signal: int, *, everything: bool) -> None:
        # For an exec containerd does not pass ``everything`` on. And runc finds everything by its cgroup, which the
        # same-named container of another node on this machine shares; where SIGKILL of the init is enough (its pid
        # namespace goes with it) nobody else's processes are to be killed.
        await self._look_again((namespace, name))
        task = await self._find(namespace, name)
        if task.dying:
            await self._hurry(task)
            return
        self._mend(task)
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
            await self._converse(task, lambda c: c.kill(exec_id, signal, everything, self._config.call_timeout))
        except errors.NodeError:
            # Everything is dead already: runc says so of an init that is to be killed, but not where all are, and
            # clients delete by force that way.
            if not with_init or (await self.get(namespace, name)).status is not Status.STOPPED:
                raise
        if not exec_id and signal == SIGKILL:
            await self._thaw(namespace, name)

    async def _thaw(self, namespace: str, name: str) -> None:
        """Let a paused task die of the SIGKILL that waits for it: in a frozen cgroup of v1 it has no effect, and
        runc thaws that one, but crun does not.
        """
        try:
            if (await self.get(namespace, name)).status in (Status.PAUSED, Status.PAUSING):
                await self.resume(namespace, name)
        except errors.NodeError as error:  # it is dead by now: its runtime thawed it
            log.debug("thawing %s/%s, which was killed: %s", namespace, name, error)

    async def exec(self, namespace: str, name: str, exec_id: str, spec: Opaque | None, io: IO) -> None:
        if not exec_id:
            raise errors.InvalidArgument.verbatim("exec id cannot be empty")
        task = await self._find(namespace, name)
        with _prefixed(f"invalid exec id {exec_id}: "):
            identifiers.validate(exec_id)
        checks.payload("spec", spec)
        await checks.stdio(task.program.path, io)
        await self._converse(task, lambda c: c.exec(exec_id, spec, io, self._config.call_timeout))

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
        await self._converse(task, lambda c: c.update(resources, annotations, self._config.call_timeout))

    async def metrics(self, namespace: str, filters_: Sequence[str]) -> Sequence[Metric]:
        wanted = await filters.parsed(filters_, self._lane)

        async def stats(task: _Task) -> Metric | None:
            at = time.time_ns()
            try:
                return Metric(task.name, at, await self._converse(task, lambda c: c.stats(self._config.state_timeout)))
            except errors.NodeError as error:
                if not isinstance(error, errors.NotFound):
                    log.warning("metrics of %s: %s", task, error)
                return None

        def fields(task: _Task) -> filters.Adaptor:
            values = {"id": task.name, "namespace": task.namespace}
            return lambda path: (values[path[0]], True) if path[0] in values else ("", False)

        chosen = [t for (space, _), t in sorted(self._tasks.items()) if space == namespace and wanted.match(fields(t))]
        return [m for m in await asyncio.gather(*map(stats, chosen)) if m is not None]

    async def checkpoint(
        self, namespace: str, name: str, options: Opaque | None, *, lease: str = ""
    ) -> Sequence[Descriptor]:
        container = await self._node.container(namespace, name)
        task = await self._find(namespace, name)
        wanted = checkpoint.image_path(container.runtime, options)
        if wanted:
            await self._converse(task, lambda c: c.checkpoint(Path(wanted), options, self._config.call_timeout))
            return []
        image = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=self._checkpoints))
        try:
            await self._converse(task, lambda c: c.checkpoint(image, options, self._config.call_timeout))
            return await checkpoint.store(self._node, namespace, lease, image, container)
        finally:
            await asyncio.to_thread(shutil.rmtree, image, ignore_errors=True)

    async def wait(self, namespace: str, name: str, exec_id: str = "") -> Exit:
        while (doubt := self._doubts.get((namespace, name))) is not None:
            await doubt.tried.wait()
        task = await self._find(namespace, name)
        process = task.watched(exec_id)
        if process.exit is not None:
            return process.exit
        return await asyncio.shield(self._watch(task, process))


@contextlib.contextmanager
def _prefixed(words: str) -> Iterator[None]:
    """Errors from inside say first what was being done; their class stays."""
    try:
        yield
    except errors.NodeError as error:
        raise type(error).verbatim(f"{words}{error}", error.trailers) from error
    except OSError as error:
        raise errors.of_system(error, words.removesuffix(": ")) from error


async def _or_abandoned(making: asyncio.Future[int], abandoned: asyncio.Event, waited_for: list[int]) -> int:
    """What a shim's Create answers. Once its caller is gone nobody opens these FIFOs any more: they are opened
    here, lest the shim wait for that.
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


def _address(task: _Task) -> Address | None:
    """Where its shim listens; None if that was never known. DataLoss, or OSError, where it cannot be read any more."""
    if task.connection is not None:
        return task.connection.address
    seen = task.seen.address if task.seen else None
    return (task.bundle.read_address() if seen is None else task.bundle.readable_address()) or seen


def _readable_address(task: _Task) -> Address | None:
    """The same; None also for an address that cannot be read."""
    with contextlib.suppress(errors.DataLoss, OSError):
        return _address(task)
    return None


def _in_the_way(task: _Task) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        f"task {task.name}: its shim is dead, and what it left cannot be cleaned up yet: "
        f"{task.trouble or 'it takes long'}"
    )


def _nobody_listens(error: BaseException) -> bool:
    return isinstance(error.__cause__, (ConnectionRefusedError, FileNotFoundError))


def _log_failure(job: asyncio.Task[Any]) -> None:
    if not job.cancelled() and (error := job.exception()) is not None:
        if isinstance(error, errors.NodeError):
            log.debug("%s", error)
        else:
            log.error("a task's follower failed", exc_info=error)
