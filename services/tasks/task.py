"""One task: its life, the way to its shim, and the exits that are waited for.

Theory of operation
===================

A task's life is a state, and every change of it is a row of :data:`TRANSITIONS`. Two rules protect this:

1. Only :meth:`Task._move` changes the state, and it does nothing that waits. An event that the table does not have for
   a state is a defect, and raises.
2. What a state stands for begins with it, in ``_move`` too: CONNECTED asks the shim who it is, LOST connects to it
   anew. So each begins once for each time that the state is entered.

=========  =====================================================================================================
NEW        Whoever creates a task, or finds it at a start, has it for itself. The loss of a connection means nothing
CONNECTED  The task is known, and its shim is connected to
LOST       The task is known. The connection has ended, or could not be made yet: it is made anew until that succeeds,
           or the shim turns out to be dead
ENDING     The shim is ended on purpose: the task is deleted, or half of a create is undone
DEAD       The shim is dead, and what it left is being cleaned up (``burial.py``). The task is shown as UNKNOWN
GONE       Nothing of it is left
LEFT       Nothing more is done here. Its shim goes on: the service ends, or another Task takes this one's place
=========  =====================================================================================================

A shim is dead if its process is, which its pidfd tells, or, as long as its pid is not known, if nobody listens at its
address. It is never taken for dead because it is silent.

Between two awaits nobody else runs. So a state that was looked at is certain until the next await, and no longer. Each
place that waits, and then acts, and why it may:

* ``connect`` looks at the state when the connection is there. If the task was deleted or buried meanwhile nobody would
  ever close it: it is closed at once. If the shim's process has died meanwhile (a process that is dying takes
  connections) there was no connection whose end anybody could have noticed: that is an error as if it had refused.
* A connection that ends calls ``_lost``, which looks whether it is still the task's: each is lost once, whoever
  notices first, the connection itself or the pidfd (over gRPC only that one does).
* ``_recover`` belongs to the state LOST, and looks at it after each wait. Another one can begin only after it has
  left LOST by connecting; so a shim is found dead once, and its task is buried once.
* ``_identify`` belongs to one connection, and ends with it: the pid that a former shim has told is not taken for that
  of its successor, and the pidfd is opened once, and not behind the back of ``close``.
* ``converse`` uses the connection that it was given, which may have ended by then: the call fails as Unavailable, and
  nothing is asked twice. Only then it waits for what becomes of the task, and says that.
* A call that succeeded says nothing of the state: its shim may have ended right behind its answer. Whoever acts on the
  answer looks at the state first (``LocalTasks._delete``).
* ``_await_exit`` learns exits from a connection's Wait. That answer may come after the one to Delete, when the task is
  GONE: then the exit is not noted on the disk, where it would be taken for that of the next task of this name.
* A NEW task's connection may end unseen. It is looked at when the task becomes known (``follow``): it is CONNECTED only
  if the connection is there, and LOST, from which it is followed like any, if not.
* DEAD is entered where the shim is found dead, not when its burial gets its turn. So no verb that runs in between takes
  it for alive; and its name is taken from that moment (``Burial.begin``).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from signal import SIGKILL
from typing import TypeVar

from services.kit import errors
from services.tasks import dead_shim
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
    """It is known from here on, and its shim is connected to."""
    KEPT = enum.auto()
    """It is known from here on, though its shim is not connected to."""
    CONNECTED = enum.auto()
    LOST = enum.auto()
    """The connection has ended."""
    ENDED = enum.auto()
    """Its shim is to end."""
    DIED = enum.auto()
    """Its shim is dead, and has left something."""
    FORGOTTEN = enum.auto()
    """All is removed."""
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
"""The end of the connection means that something happened to the shim."""
_OVER = (Life.GONE, Life.LEFT)


class IllegalTransitionError(Exception):
    """A defect of this service: an event that cannot be in this state."""


class Watched:
    """A process whose exit is waited for."""

    __slots__ = ("exec_id", "exit", "pid", "waiter")

    def __init__(self, exec_id: str, pid: int = 0) -> None:
        self.exec_id = exec_id
        self.pid = pid
        self.exit: Exit | None = None
        self.waiter: asyncio.Task[Exit] | None = None


class Cleaning:
    """The cleaning up after a dead shim, as those see it who ask for its task."""

    __slots__ = ("attempts", "hurried", "trouble", "underway")

    def __init__(self) -> None:
        self.underway = False
        """It is being tried at this moment."""
        self.attempts = 0
        """How often it was tried in vain."""
        self.trouble = ""
        """Why it failed, the last time."""
        self.hurried = asyncio.Event()
        """Set by who wants it tried at once."""


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
        """Change the state, and begin what the new one stands for."""
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
        """The task is known from here on, and its shim followed: where that turns out to be dead, ``on_death`` is
        told, once.
        """
        self._on_death = on_death
        if self.died.is_set():
            self._part()
        self._move(Event.KEPT if self.connection is None else Event.ADOPTED)

    def ends(self) -> None:
        """Its shim is ended from here on."""
        self._move(Event.ENDED)

    def dies(self) -> None:
        """From here on the task only waits for its burial."""
        self._part()
        self._move(Event.DIED)

    def forgotten(self) -> None:
        """Nothing of it is left but what :meth:`close` lets go of."""
        self._move(Event.FORGOTTEN)

    def leaves(self) -> None:
        """Nothing more is done here; :meth:`close` it when nobody works on it any more."""
        self._move(Event.LEFT)

    def notify(self) -> None:
        """Something has changed: those who wait look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def until(self, so: Callable[[], object], seconds: float | None = None) -> bool:
        """Wait until it is so, for at most ``seconds``. Whether it is: nothing changed since then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not so():
                    await self._changed.wait()
        return bool(so())

    async def close(self) -> None:
        """Let go of the connection, the log and the pidfd."""
        await self.disconnect()
        loop = asyncio.get_running_loop()
        for fd in (self._log, self._pidfd):
            if fd >= 0:
                loop.remove_reader(fd)
                os.close(fd)
        self._log = self._pidfd = -1

    # ---------------------------------------------------------------------------------------------- the bundle

    def see(self) -> None:
        """Write down what must be known to end the task whatever becomes of its bundle."""
        try:
            self.seen = dead_shim.see(self.bundle, self.program.path, self.address(), self.init.pid)
            self._service.notes.write_sighting(self.bundle, self.seen)
        except OSError as error:
            log.warning("the sighting of %s: %s", self, error)

    def mend(self) -> None:
        """Put a bundle that was removed back, as far as a shim needs it for killing and deleting."""
        if self.seen is not None and not self.bundle.path.exists():
            log.warning("the bundle of %s was removed", self)
            try:
                dead_shim.restore(self.bundle, self.seen)
            except OSError as error:
                log.warning("the bundle of %s: %s", self, error)

    def address(self) -> Address | None:
        """Where its shim listens; None if that was never known. DataLoss, or OSError, where it cannot be read any
        more.
        """
        if self.connection is not None:
            return self.connection.address
        seen = self.seen.address if self.seen else None
        return (self.bundle.read_address() if seen is None else self.bundle.readable_address()) or seen

    def readable_address(self) -> Address | None:
        """The same; None also for an address that cannot be read."""
        with contextlib.suppress(errors.DataLoss, OSError):
            return self.address()
        return None

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

    # ---------------------------------------------------------------------------------------------- the shim's process

    @property
    def has_pid(self) -> bool:
        return self._pidfd >= 0 or self.died.is_set()

    def follow_pid(self, pid: int) -> None:
        """Learn of the death of the shim's process. A shim that does not say its pid (0) is not followed so."""
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
        """The connection need not end with the process (over gRPC), so it ends here. In the other states those who
        work on the task wait for ``died``.
        """
        self.died.set()
        if self.life is Life.CONNECTED:
            self._part()
            self._move(Event.LOST)
        self.notify()

    def kill_shim(self) -> bool:
        """Send SIGKILL. Whether it was alive, as far as is known."""
        if self._pidfd < 0 or self.died.is_set():
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, SIGKILL)
        return True

    async def _identify(self, connection: Connection) -> None:
        """Ask the shim for its pid, however long it takes to answer."""
        pause = 0.1
        while self.connection is connection and not self.has_pid:
            try:
                pid, _ = await connection.connect_pids(self._service.config.load_timeout)
                if self.connection is connection:
                    self.follow_pid(pid)
                return
            except errors.NodeError as error:
                log.debug("shim of %s: %s", self, error)
            except Exception:  # such as no more descriptors
                log.exception("asking the shim of %s for its pid", self)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    # ---------------------------------------------------------------------------------------------- the connection

    async def connect(self, address: Address, seconds: float) -> None:
        """Make the connection. Unavailable, caused by an OSError, if nobody listens; nothing if the task is ended
        meanwhile.
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

    async def disconnect(self) -> None:
        """Close the connection; its end means nothing."""
        connection, self.connection = self.connection, None
        if connection is not None:
            await connection.close()

    def _part(self) -> None:
        """The same, without waiting for it."""
        connection, self.connection = self.connection, None
        if connection is not None:
            self._service.spawn(connection.close())

    async def _recover(self) -> None:
        """Make the connection anew, or find that the shim is dead."""
        pause = 0.005
        while self.life is Life.LOST and not self.died.is_set():
            try:
                if (address := self.address()) is None:
                    break
                await self.connect(address, 2.0)
            except Exception as error:  # whatever it is, the task has to be followed again
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
        """The connection, waited for while it is being made. NotFound once the task is gone; FailedPrecondition where
        its shim is dead, and what that left cannot be cleaned up.
        """

        def known() -> bool:
            return self.connection is not None or self.life in _OVER or bool(self.cleaning.trouble)

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
        """Ask the shim. One that is lost meanwhile is asked no second time; if it was dead, there is no such task any
        more.
        """
        config = self._service.config
        connection = await self.usable(config.load_timeout)
        try:
            return await question(connection)
        except errors.Unavailable:
            if self.connection is connection or self.life not in (*FOLLOWED, *_OVER):
                raise
            await self.usable(config.cleanup_timeout * 2 + 1.0)
            raise errors.Unavailable(
                f"the connection to the shim of task {self.name} was lost, and is there again"
            ) from None

    def in_the_way(self) -> errors.FailedPrecondition:
        """The answer to who asks for a task that is DEAD."""
        return errors.FailedPrecondition(
            f"task {self.name}: its shim is dead, and what it left cannot be cleaned up yet: "
            f"{self.cleaning.trouble or 'it takes long'}"
        )

    # ---------------------------------------------------------------------------------------------- exits

    def watched(self, exec_id: str) -> Watched:
        """A process of the task: its init, or an exec, which need not be there."""
        if not exec_id:
            return self.init
        found = self.execs.get(exec_id)
        if found is None:
            found = self.execs[exec_id] = Watched(exec_id)
        return found

    def watch(self, process: Watched) -> asyncio.Task[Exit]:
        """The one Wait for a process."""
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
                break  # its shim is dead
            try:
                exit_ = await connection.wait(process.exec_id)
            except errors.Unavailable:
                if self.connection is connection:  # over gRPC the call may know first
                    await asyncio.sleep(0.2)
                continue
            except errors.NodeError:
                if process.exec_id and not process.pid and self.execs.get(process.exec_id) is process:
                    del self.execs[process.exec_id]  # nobody knows that there is such an exec
                raise
            self.exited(process, Exit(exit_.status, exit_.at, process.pid))
            if not self._service.node.reachable and process.pid:
                assert process.exit is not None
                self._service.node.exited(self.namespace, self.name, process.exec_id, process.exit)
        return process.exit

    def exited(self, process: Watched, how: Exit) -> None:
        """A process has ended. That of the init is noted on the disk, as long as there is such a task."""
        process.exit = how
        if process.exec_id or self.life is Life.GONE:
            return
        self._service.notes.note_exit(self.bundle)
        if self._service.on_exit is not None:
            self._service.on_exit(self.namespace, self.name, how)


def nobody_listens(error: BaseException) -> bool:
    """Whether that is why a connection failed: what would listen has ended."""
    return isinstance(error.__cause__, ConnectionRefusedError | FileNotFoundError)
