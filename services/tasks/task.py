"""One task: its life, the way to its shim, and the exits that are waited for.

Theory of operation
===================

A task has a state, and each change of the state is a row of :data:`TRANSITIONS`. Two rules protect the table:

1. Only :meth:`Task._move` changes the state, and it never waits. An event that the table does not have for a state is
   a defect, and raises.
2. ``_move`` also begins the work that belongs to a state: in CONNECTED the shim is asked for its pid, in LOST it is
   connected to again. So this work begins exactly once each time the state is entered.

=========  ============================================================================================================
NEW        The task belongs to the code that creates it, or that finds it at a start. No other code knows it
CONNECTED  The task is known, and its shim is connected to
LOST       The task is known. The connection has ended, or was never made. It is tried again until it is made, or until
           the shim is known to be dead
ENDING     The shim is being ended on purpose: the task is deleted, or a create is undone
DEAD       The shim is dead, and what it left is being cleaned up (``burial.py``). Clients see the status UNKNOWN
GONE       Nothing of the task is left
LEFT       This object does nothing more, and the shim goes on: the service ends, or another object takes over
=========  ============================================================================================================

A shim is dead if its process is, which a pidfd tells. As long as its pid is not known, it is dead if no process listens
at its address, or if it has none. A shim is never taken for dead because it is silent.

Between two awaits nothing else runs (one thread, one loop). So a state is certain from the moment it is read until the
next await. This follows for the functions that wait and then act, and for those that they call:

* ``connect`` reads the state after the connection is made. If the task was deleted or buried meanwhile, the connection
  is closed: no other code would close it. If the shim's process has died meanwhile, the connection counts as refused: a
  dying process still accepts connections, and the task had none whose end could have been noticed.
* ``_lost`` ignores a connection that is no longer the task's. So a connection is lost once, whether its own end or the
  pidfd is noticed first. Over gRPC only the pidfd tells; as long as there is none, calls that fail do (``_suspect``).
* ``_recover`` works in the state LOST only, and reads the state after each wait. The next one starts when the state is
  entered again, so there is never a second one. Therefore a shim is found dead once, and its task is buried once.
* ``_identify`` belongs to one connection, and stops with it. So the pid of an earlier shim is not taken for that of its
  successor, and no pidfd is opened after ``close``.
* ``converse`` sends a request once, over the connection that it got. If that has ended the request fails as
  Unavailable. Only then does it wait to learn what became of the task, and reports that.
* The success of a request says nothing about the state: the shim may have died right after its answer. Code that acts
  on an answer reads the state first (``LocalTasks._delete``).
* ``_await_exit`` may get the answer to its Wait after the task was deleted. Then ``exited`` does not note the exit on
  the disk: there it would count for the next task of this name.
* ``follow`` reads the connection and ``died`` when the task becomes known, since a NEW task may lose its connection
  without notice. The task is CONNECTED if the connection is there, else LOST.
* ``Burial.begin`` enters DEAD and takes the name at the moment at which the shim is found dead, not when the burial
  gets its turn. So no request in between takes the task for alive, and no create takes its name.
* ``Names.with_shims`` counts tasks that are still being created, since a shim may serve a group. ``Ending.end`` asks
  again after each wait, before it kills a shim.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from signal import SIGKILL
from typing import TypeVar

from services.kit import errors, tracing
from services.oci.mounts import Mount
from services.tasks import dead_shim, roots
from services.tasks.bundle import Address, Bundle
from services.tasks.service import Key, Service
from services.tasks.shim import Connection, Program
from services.tasks.store import Exit, task_not_found

log = logging.getLogger(__name__)
T = TypeVar("T")

KILLED = 128 + SIGKILL
"""The status of a process that was killed."""


class Life(enum.Enum):
    """The states, told above."""

    NEW = enum.auto()
    CONNECTED = enum.auto()
    LOST = enum.auto()
    ENDING = enum.auto()
    DEAD = enum.auto()
    GONE = enum.auto()
    LEFT = enum.auto()


class Event(enum.Enum):
    """What changes them."""

    ADOPTED = enum.auto()
    """The task is known from now on, and its shim is connected to."""
    KEPT = enum.auto()
    """The task is known from now on; its shim is not connected to."""
    CONNECTED = enum.auto()
    LOST = enum.auto()
    """The connection has ended."""
    ENDED = enum.auto()
    """The shim is to end."""
    DIED = enum.auto()
    """The shim is dead."""
    FORGOTTEN = enum.auto()
    """Everything is removed."""
    LEFT = enum.auto()


TRANSITIONS: dict[Life, dict[Event, Life]] = {
    Life.NEW: {
        Event.CONNECTED: Life.NEW,
        Event.LOST: Life.NEW,
        Event.ADOPTED: Life.CONNECTED,
        Event.KEPT: Life.LOST,
        Event.ENDED: Life.ENDING,
        Event.DIED: Life.DEAD,
        Event.FORGOTTEN: Life.GONE,
        Event.LEFT: Life.LEFT,
    },
    Life.CONNECTED: {Event.LOST: Life.LOST, Event.ENDED: Life.ENDING, Event.LEFT: Life.LEFT},
    Life.LOST: {
        Event.CONNECTED: Life.CONNECTED,
        Event.ENDED: Life.ENDING,
        Event.DIED: Life.DEAD,
        Event.LEFT: Life.LEFT,
    },
    Life.ENDING: {Event.LOST: Life.ENDING, Event.DIED: Life.DEAD, Event.FORGOTTEN: Life.GONE, Event.LEFT: Life.LEFT},
    Life.DEAD: {Event.LOST: Life.DEAD, Event.FORGOTTEN: Life.GONE, Event.LEFT: Life.LEFT},
    Life.GONE: {Event.LOST: Life.GONE},
    Life.LEFT: {Event.LOST: Life.LEFT},
}

FOLLOWED = (Life.CONNECTED, Life.LOST)
"""States in which the task is known, and its shim is thought to live."""
_OVER = (Life.GONE, Life.LEFT)


class IllegalTransitionError(Exception):
    """An event that cannot happen in this state: a defect of this service."""


class Watched:
    """A process of the task, and the Wait for its exit."""

    __slots__ = ("exec_id", "exit", "pid", "waiter")

    def __init__(self, exec_id: str, pid: int = 0) -> None:
        self.exec_id = exec_id
        self.pid = pid
        self.exit: Exit | None = None
        self.waiter: asyncio.Task[Exit] | None = None


class Cleaning:
    """The progress of cleaning up after a dead shim."""

    __slots__ = ("attempts", "hurried", "trouble", "underway")

    def __init__(self) -> None:
        self.underway = False
        """An attempt runs at this moment."""
        self.attempts = 0
        """The number of attempts that failed."""
        self.trouble = ""
        """Why the last attempt failed."""
        self.hurried = asyncio.Event()
        """Set to have the next attempt made at once."""


class Task:
    """A task, and the way to its shim."""

    def __init__(self, bundle: Bundle, program: Program, service: Service) -> None:
        self.bundle, self.program = bundle, program
        self.life = Life.NEW
        self.connection: Connection | None = None
        self.seen: dead_shim.Sighting | None = None
        self.init = Watched("")
        self.execs: dict[str, Watched] = {}
        self.cleaning = Cleaning()
        self.shim_pid = 0
        self.died = asyncio.Event()
        """Set when the process of the shim has ended."""
        self._service = service
        self._on_death: Callable[[Task], None] | None = None
        self._changed = asyncio.Event()
        """Replaced and set at each change."""
        self._pidfd = -1
        self._log = -1
        self._root = -1

    @property
    def namespace(self) -> str:
        return self.bundle.namespace

    @property
    def name(self) -> str:
        return self.bundle.id

    @property
    def key(self) -> Key:
        return self.bundle.namespace, self.bundle.id

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    # ---------------------------------------------------------------------------------------------- life

    def _move(self, event: Event) -> None:
        """Change the state, and begin the work that belongs to the new one."""
        before = self.life
        try:
            self.life = TRANSITIONS[before][event]
        except KeyError:
            raise IllegalTransitionError(f"task {self}: {event.name} in the state {before.name}") from None
        if self.life is not before:
            if self.life is Life.CONNECTED and self.connection is not None and not self.has_pid:
                self._service.spawn(self._identify(self.connection))
            elif self.life is Life.LOST:
                self._service.spawn(self._recover())
        self.notify()

    def follow(self, on_death: Callable[[Task], None]) -> None:
        """Follow the shim of a task that is known from now on. ``on_death`` is called once if the shim is dead."""
        self._on_death = on_death
        if self.died.is_set():
            self._part()
        self._move(Event.KEPT if self.connection is None else Event.ADOPTED)

    def ends(self) -> None:
        """The shim is being ended from now on."""
        self._move(Event.ENDED)

    def dies(self) -> None:
        """The shim is dead: from now on the task waits for its burial."""
        self._part()
        self._move(Event.DIED)

    def forgotten(self) -> None:
        """Nothing of the task is left on the disk. :meth:`close` it next."""
        self._move(Event.FORGOTTEN)

    def leaves(self) -> None:
        """Do nothing more for this task. :meth:`close` it once its background work has ended."""
        self._move(Event.LEFT)

    def notify(self) -> None:
        """Have all that wait in :meth:`until` look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def until(self, so: Callable[[], object], seconds: float | None = None) -> bool:
        """Wait until ``so()`` is true, for at most ``seconds``; return whether it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not so():
                    await self._changed.wait()
        return bool(so())

    async def close(self) -> None:
        """Close the connection, the log, the pidfd, and the root unless it was taken. The shim has it mounted still, or
        never had, so nothing is written now.
        """
        await self.disconnect()
        loop = asyncio.get_running_loop()
        for fd in (self._log, self._pidfd):
            if fd >= 0:
                loop.remove_reader(fd)
                os.close(fd)
        if (root := self.take_root()) >= 0:
            os.close(root)
        self._log = self._pidfd = -1

    # ---------------------------------------------------------------------------------------------- the bundle

    def hold_root(self, mounts: Sequence[Mount]) -> None:
        """The shim has made these mounts: hold them (``roots.py``)."""
        self._root = roots.hold(self.bundle.path / "rootfs", mounts, self._service.root)

    def take_root(self) -> int:
        """What is held; -1 if nothing is. The caller lets go of it."""
        root, self._root = self._root, -1
        return root

    def see(self) -> None:
        """Write the task's sighting, by which it can be ended even without its bundle."""
        try:
            self.seen = dead_shim.see(self.bundle, self.program.path, self.address(), self.init.pid)
            self._service.notes.write_sighting(self.bundle, self.seen)
        except OSError as error:
            log.warning("the sighting of %s: %s", self, error)

    def mend(self) -> None:
        """Restore a bundle that was removed, as far as the shim needs it to kill and delete the task."""
        if self.seen is not None and not self.bundle.path.exists():
            log.warning("the bundle of %s was removed", self)
            try:
                dead_shim.restore(self.bundle, self.seen)
            except OSError as error:
                log.warning("the bundle of %s: %s", self, error)

    def address(self) -> Address | None:
        """The address of the shim; None if it was never known. DataLoss or OSError if it cannot be read any more."""
        if self.connection is not None:
            return self.connection.address
        seen = self.seen.address if self.seen else None
        return (self.bundle.read_address() if seen is None else self.bundle.readable_address()) or seen

    def readable_address(self) -> Address | None:
        """As :meth:`address`, but None also for an address that cannot be read."""
        with contextlib.suppress(errors.DataLoss, OSError):
            return self.address()
        return None

    def open_log(self) -> None:
        """Open the log, and copy it to stderr. This comes before the shim starts: a shim whose log is full blocks."""
        try:
            with contextlib.suppress(FileExistsError):
                os.mkfifo(self.bundle.log, 0o700)
            self._log = os.open(self.bundle.log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            asyncio.get_running_loop().add_reader(self._log, self._copy_log)
        except OSError as error:  # the task works without its log
            log.warning("log of %s: %s", self, error)

    def _copy_log(self) -> None:
        with contextlib.suppress(BlockingIOError):
            text = os.read(self._log, 1 << 16)
            sys.stderr.write(text.decode(errors="replace"))
            sys.stderr.flush()

    # ---------------------------------------------------------------------------------------------- the shim's process

    @property
    def has_pid(self) -> bool:
        return self._pidfd >= 0 or self.died.is_set()

    def follow_pid(self, pid: int) -> None:
        """Open a pidfd of the shim's process, to learn of its death. A shim that does not say its pid says 0."""
        if not pid or self.has_pid:
            return
        self.shim_pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._has_died()
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._pidfd_says)

    def _pidfd_says(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._has_died()

    def _has_died(self) -> None:
        """End the connection too, which over gRPC does not end with the process. In the other states the code that
        works on the task waits for ``died``.
        """
        self.died.set()
        if self.life is Life.CONNECTED:
            self._part()
            self._move(Event.LOST)
        self.notify()

    def kill_shim(self) -> bool:
        """Send SIGKILL; return whether the process was thought to live."""
        if self._pidfd < 0 or self.died.is_set():
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, SIGKILL)
        return True

    async def _identify(self, connection: Connection) -> None:
        """Ask the shim for its pid until it answers."""
        pause = 0.1
        while self.connection is connection and not self.has_pid:
            try:
                pid, _ = await connection.connect_pids(self._service.config.load_timeout)
                if self.connection is connection:
                    self.follow_pid(pid)
                return
            except errors.NodeError as error:
                log.debug("shim of %s: %s", self, error)
                self._suspect(connection, error)
            except Exception:  # such as EMFILE
                log.exception("asking the shim of %s for its pid", self)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    # ---------------------------------------------------------------------------------------------- the connection

    async def connect(self, address: Address, seconds: float) -> None:
        """Make the connection, within ``seconds``. Unavailable if it fails, caused by the OSError if no process
        listens. If the task is ended meanwhile no connection is made.
        """
        connection = self._service.connection(address, self.namespace, self.name, lambda: self._lost(connection))
        try:
            await connection.connect(seconds)
            if self.died.is_set():
                raise errors.Unavailable(f"the shim of task {self.name} has ended")
        except BaseException:
            await connection.close()
            raise
        if self.life not in (Life.NEW, Life.LOST):
            await connection.close()
            return
        self.connection = connection
        self._move(Event.CONNECTED)

    def _lost(self, connection: Connection) -> None:
        if self.connection is connection:
            self.connection = None
            self._move(Event.LOST)

    def _suspect(self, connection: Connection, error: errors.NodeError) -> None:
        """Connect again if a call fails as Disconnected though the connection has not ended and the pid is not known.
        Over gRPC nothing else tells that such a shim has died. A shim's own UNAVAILABLE does not.
        """
        if (
            isinstance(error, errors.Disconnected)
            and self.connection is connection
            and self.life is Life.CONNECTED
            and not self.has_pid
        ):
            self._part()
            self._move(Event.LOST)

    async def disconnect(self) -> None:
        """Close the connection without a change of the state."""
        connection, self.connection = self.connection, None
        if connection is not None:
            await connection.close()

    def _part(self) -> None:
        """As :meth:`disconnect`, without waiting."""
        connection, self.connection = self.connection, None
        if connection is not None:
            self._service.spawn(connection.close())

    async def _recover(self) -> None:
        """Connect again, or find the shim dead."""
        pause = 0.005
        while self.life is Life.LOST and not self.died.is_set():
            try:
                if (address := self.address()) is not None:
                    await self.connect(address, 2.0)
                elif self.has_pid:  # a living process is no dead shim
                    await self.until(lambda: self.died.is_set() or self.life is not Life.LOST)
                else:
                    break
            except Exception as error:  # on any failure: the task must be followed again
                if not isinstance(error, errors.NodeError | OSError | ValueError):
                    log.exception("connecting to the shim of %s", self)
                if not self.has_pid and nobody_listens(error):
                    break
                await self.until(lambda: self.died.is_set() or self.life is not Life.LOST, pause)
                pause = min(pause * 2, 5.0)
        if self.life is Life.LOST and self._on_death is not None:
            self._on_death(self)

    # ---------------------------------------------------------------------------------------------- asking

    async def usable(self, seconds: float | None) -> Connection:
        """The connection; while it is being made, wait at most ``seconds``. Unavailable after that, NotFound if the
        task is gone, FailedPrecondition if its shim is dead and cleaning up fails.
        """

        def known() -> bool:
            return self.connection is not None or self.life in _OVER or bool(self.cleaning.trouble)

        if not known():
            with tracing.wait("lock", **{"splitd.wait.for": f"a connection to the shim of task {self.name}"}):
                if not await self.until(known, seconds):
                    raise errors.Unavailable(f"the shim of task {self.name} does not answer")
        if self.life is Life.LEFT:
            raise errors.Unavailable(f"task {self.name}: the tasks service ends")
        if self.life is Life.GONE:
            raise errors.NotFound.verbatim(task_not_found(self.name))
        if self.connection is None:
            raise self.in_the_way()
        return self.connection

    async def converse(self, question: Callable[[Connection], Awaitable[T]]) -> T:
        """Ask the shim. If the connection is lost meanwhile the question is not repeated: the result is NotFound if
        the shim has died or is to end, else Unavailable.
        """
        config = self._service.config
        connection = await self.usable(config.load_timeout)
        try:
            return await question(connection)
        except errors.Unavailable as error:
            self._suspect(connection, error)
            if self.life is Life.ENDING and isinstance(error, errors.Disconnected):  # it was asked to end meanwhile
                raise errors.NotFound.verbatim(task_not_found(self.name)) from error
            if self.connection is connection or self.life not in (*FOLLOWED, *_OVER):
                raise
            await self.usable(config.cleanup_timeout * 2 + 1.0)
            raise errors.Unavailable(
                f"the connection to the shim of task {self.name} was lost, and is there again"
            ) from None

    def in_the_way(self) -> errors.FailedPrecondition:
        """The error for requests to a task that is DEAD."""
        return errors.FailedPrecondition(
            f"task {self.name}: its shim is dead, and what it left cannot be cleaned up yet: "
            f"{self.cleaning.trouble or 'it takes long'}"
        )

    # ---------------------------------------------------------------------------------------------- exits

    def watched(self, exec_id: str) -> Watched:
        """The init for an empty ``exec_id``, else the exec, which need not exist at the shim."""
        if not exec_id:
            return self.init
        found = self.execs.get(exec_id)
        if found is None:
            found = self.execs[exec_id] = Watched(exec_id)
        return found

    def watch(self, process: Watched) -> asyncio.Task[Exit]:
        """The Wait for a process, of which there is one at a time."""
        if process.waiter is None or (process.waiter.done() and process.exit is None):
            process.waiter = self._service.spawn(self._await_exit(process))
        return process.waiter

    async def _await_exit(self, process: Watched) -> Exit:
        while process.exit is None:
            try:
                connection = await self.usable(None)
            except errors.FailedPrecondition:
                await self.until(lambda: self.life in _OVER)
                continue
            except errors.NotFound:
                if process.exit is None:
                    raise
                break  # the burial has set it
            try:
                exit_ = await connection.wait(process.exec_id)
            except errors.Unavailable as error:
                self._suspect(connection, error)
                if self.connection is connection:  # over gRPC the call may know first
                    await asyncio.sleep(0.2)
                continue
            except errors.NodeError:
                if process.exec_id and not process.pid and self.execs.get(process.exec_id) is process:
                    del self.execs[process.exec_id]  # there is no such exec, as far as is known
                raise
            self.exited(process, Exit(exit_.status, exit_.at, process.pid))
            if not self._service.node.reachable and process.pid:
                assert process.exit is not None
                self._service.node.exited(self.namespace, self.name, process.exec_id, process.exit)
        return process.exit

    def exited(self, process: Watched, how: Exit) -> None:
        """Record the exit of a process. The init's is noted on the disk too, unless the task is gone already."""
        process.exit = how
        if process.exec_id or self.life is Life.GONE:
            return
        self._service.notes.note_exit(self.bundle)
        if self._service.on_exit is not None:
            self._service.on_exit(self.namespace, self.name, how)


def nobody_listens(error: BaseException) -> bool:
    """Return whether a connection failed because no process listens at the address."""
    return isinstance(error.__cause__, ConnectionRefusedError | FileNotFoundError)
