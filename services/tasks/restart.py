"""The restart monitor keeps containers labelled ``containerd.io/restart.status`` in the state that the label names.

A client (nerdctl, for one) sets on the container::

    containerd.io/restart.status              running or stopped
    containerd.io/restart.policy              always (also if empty), unless-stopped, on-failure[:RETRIES], no
    containerd.io/restart.explicitly-stopped  true: it is left alone, whatever its policy
    containerd.io/restart.loguri              where a restarted task writes (a URI; a path in the older restart.logpath)
    containerd.io/restart.count               counted up here at each restart

The monitor looks at every container once in an interval, as containerd does, and at a container whose task has exited
a second after that. It restarts none more often than once in an interval. The second leaves time to a client that kills
a task in order to remove it: a container without a task is not looked at then. A container that has no task at all may
be about to get one from a client, so it is started only when the monitor finds it so a second time.

When a node starts (``nodestart.py``) "explicitly-stopped" becomes false for containers with the policy always. This is
the difference from unless-stopped (as in containerd since 2.4.0).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.kit import errors, loops, tracing
from services.oci.mounts import Mount
from services.tasks import spec as specs
from services.tasks.nodestart import NodeStart
from services.tasks.store import IO, Container, CreateOptions, Exit, Node, Status, Tasks

log = logging.getLogger(__name__)

PREFIX = "containerd.io/restart."
STATUS, POLICY, COUNT, STOPPED = PREFIX + "status", PREFIX + "policy", PREFIX + "count", PREFIX + "explicitly-stopped"
LOG_URI, LOG_PATH = PREFIX + "loguri", PREFIX + "logpath"

ENDING = 60.0
"""Seconds within which a task that was killed must have ended."""

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})


@dataclass(frozen=True, slots=True)
class Policy:
    """The rule by which a task that should run, but does not, is started again. ``retries`` 0 means no limit."""

    name: str
    retries: int = 0

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read a label. InvalidArgument, in containerd's words, if it is no policy."""
        name, separator, retries = text.partition(":")
        if name in ("", "always", "no", "unless-stopped"):
            if separator:
                raise errors.InvalidArgument(f'restart policy "{name}" not support max retry count')
            return cls(name or "always")
        if name == "on-failure":
            try:
                return cls(name, int(retries) if separator else 0)
            except ValueError:
                raise errors.InvalidArgument(f"invalid max retry count: {retries}") from None
        raise errors.InvalidArgument(f'restart policy "{text}" not supported')

    def restarts(self, exit_status: int, labels: Mapping[str, str]) -> bool:
        """Return whether to restart a task that ended with ``exit_status``, and was not stopped on purpose."""
        if self.name in ("always", "unless-stopped"):
            return True
        if self.name == "on-failure":
            count = labels.get(COUNT, "")
            if count and not count.isdecimal():
                raise errors.InvalidArgument(f"{COUNT}: {count!r} is not a number")
            return exit_status != 0 and (self.retries == 0 or int(count or 0) < self.retries)
        return False


def decide(labels: Mapping[str, str], status: Status | None, exit_status: int) -> str:
    """Decide what to do with a container whose task is in ``status`` (None if it has none): ``start``, ``stop`` or an
    empty string.
    """
    wanted = labels.get(STATUS, "")
    if status is not None and wanted == status.name.lower():
        return ""
    if wanted == "stopped":
        return "stop" if status is not None else ""
    if wanted != "running" or status in (Status.PAUSED, Status.PAUSING) or labels.get(STOPPED, "") in _TRUE:
        return ""
    return "start" if Policy.parse(labels.get(POLICY, "")).restarts(exit_status, labels) else ""


class RestartMonitor:
    """Looks after the containers of a node's tasks while :meth:`running`."""

    def __init__(
        self,
        node: Node,
        interval: float = 10.0,
        *,
        delay: float = 1.0,
        ending: float = ENDING,
        start: NodeStart | None = None,
    ) -> None:
        """A task that is killed has ``ending`` seconds to end. ``start`` tells whether the node has just started;
        without it the node has not.
        """
        self._ending = ending
        self._node = node
        self._start_of_node = start
        self._begun = time.time_ns()
        self._interval = interval or 10.0
        self._delay = min(delay, self._interval)
        self._soon: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._hurried = loops.Tasks()
        self._started: dict[tuple[str, str], float] = {}
        self._missing: dict[tuple[str, str], float] = {}
        """When a container was first seen without a task."""
        self._working: set[tuple[str, str]] = set()
        self._tasks: Tasks | None = None

    @contextlib.asynccontextmanager
    async def running(self, tasks: Tasks) -> AsyncIterator[None]:
        """Watch until the block ends."""
        self._tasks = tasks
        try:
            async with loops.running("the restart monitor", self._run):
                yield
        finally:
            self._tasks = None
            for timer in self._soon.values():
                timer.cancel()
            await self._hurried.cancel()

    def exited(self, namespace: str, name: str, how: Exit) -> None:
        """Look at a container soon, since its task's init has exited."""
        if self._tasks is not None:
            self.gone(namespace, name)
            self._soon[namespace, name] = asyncio.get_running_loop().call_later(
                self._delay, self._hurry, namespace, name
            )

    def gone(self, namespace: str, name: str) -> None:
        """Do not look at the container soon: the client that deleted its task does not want it back at once."""
        timer = self._soon.pop((namespace, name), None)
        if timer is not None:
            timer.cancel()

    def _hurry(self, namespace: str, name: str) -> None:
        del self._soon[namespace, name]
        self._hurried.start(f"the restart monitor's look at {namespace}/{name}", self._look_at_one(namespace, name))

    async def _look_at_one(self, namespace: str, name: str) -> None:
        try:
            assert self._tasks is not None
            await self._tasks.get(namespace, name)  # one without a task is left to the next interval
            container = await self._node.container(namespace, name)
            if STATUS in container.labels:
                await self._look_at(namespace, container)
        except errors.NodeError as error:
            log.debug("restart monitor: %s/%s: %s", namespace, name, error)

    async def _run(self) -> None:
        while self._start_of_node is not None and self._start_of_node.is_new:
            try:
                await asyncio.gather(*(self._allow(n) for n in await self._node.namespaces()))
                self._start_of_node.done()
            except (errors.NodeError, OSError) as error:
                log.log(
                    logging.DEBUG if isinstance(error, errors.Unavailable) else logging.ERROR,
                    "restart monitor: labels of stopped containers: %s",
                    error,
                )
                await asyncio.sleep(self._delay)
        while True:
            try:
                await asyncio.gather(*(self._look_into(n) for n in await self._node.namespaces()))
            except errors.NodeError as error:
                log.log(
                    logging.DEBUG if isinstance(error, errors.Unavailable) else logging.ERROR,
                    "restart monitor: %s",
                    error,
                )
            now = time.monotonic()
            self._started = {k: t for k, t in self._started.items() if now - t < self._interval}
            self._missing = {k: t for k, t in self._missing.items() if now - t < self._interval * 3}
            await asyncio.sleep(self._interval)

    async def _allow(self, namespace: str) -> None:
        """Let containers with the policy always run again that were stopped on purpose before the node's start."""
        for container in await self._node.containers(namespace, f'labels."{STATUS}"'):
            try:
                always = Policy.parse(container.labels.get(POLICY, "")).name == "always"
            except errors.InvalidArgument:
                continue  # this is reported when the container is looked at
            # A container that was changed since the start may have been stopped since, and stays stopped.
            if always and container.labels.get(STOPPED, "") in _TRUE and container.updated_at < self._begun:
                try:
                    await self._node.set_label(namespace, container.id, STOPPED, "false")
                except errors.NotFound:
                    continue
                except (errors.Unavailable, errors.ResourceExhausted, errors.DeadlineExceeded):
                    raise  # these concern the node, and pass; all others concern this container alone
                except errors.NodeError as error:
                    log.error("restart monitor: %s/%s stays stopped: %s", namespace, container.id, error)

    async def _look_into(self, namespace: str) -> None:
        try:
            containers = await self._node.containers(namespace, f'labels."{STATUS}"')
        except errors.NodeError as error:
            log.error("restart monitor: namespace %s: %s", namespace, error)
            return
        except Exception:  # in this namespace: the others are looked into all the same
            log.exception("restart monitor: namespace %s", namespace)
            return
        await asyncio.gather(*(self._look_at(namespace, c) for c in containers))

    async def _look_at(self, namespace: str, container: Container) -> None:
        key = (namespace, container.id)
        if key in self._working:
            return
        self._working.add(key)
        try:
            await self._reconcile(namespace, container)
        except errors.NodeError as error:
            log.error("restart monitor: %s/%s: %s", namespace, container.id, error)
        except Exception:  # of this container, which any client may have made: the others are looked at all the same
            log.exception("restart monitor: %s/%s", namespace, container.id)
        finally:
            self._working.discard(key)

    async def _reconcile(self, namespace: str, container: Container) -> None:
        assert self._tasks is not None
        status, exit_status = None, 0
        try:
            process = await self._tasks.get(namespace, container.id)
            status, exit_status = process.status, process.exit_status
            self._missing.pop((namespace, container.id), None)
            if status is Status.UNKNOWN:
                return  # its dead shim is being buried
        except errors.NotFound:
            if (
                time.monotonic() - self._missing.setdefault((namespace, container.id), time.monotonic())
                < self._interval * 0.9
            ):
                return
        except (errors.Unavailable, errors.DeadlineExceeded):
            return  # a slow shim is no dead one
        todo = decide(container.labels, status, exit_status)
        if todo:
            # The labels were read before the state. A client that stops a task on purpose says so in a label, and only
            # then kills it: labels that are read after the state have it.
            try:
                container = await self._node.container(namespace, container.id)
            except errors.NotFound:
                return
            todo = decide(container.labels, status, exit_status)
        if todo == "stop":
            with _recorded("stop", namespace, container):
                await self._stop(namespace, container.id)
        elif (
            todo == "start"
            and time.monotonic() - self._started.get((namespace, container.id), -self._interval) >= self._interval * 0.9
        ):
            self._started[namespace, container.id] = time.monotonic()
            with _recorded("restart", namespace, container):
                await self._start(namespace, container)

    async def _stop(self, namespace: str, name: str) -> None:
        """Kill the task if it runs, and delete it."""
        assert self._tasks is not None
        with contextlib.suppress(errors.NotFound):
            process = await self._tasks.get(namespace, name)
            if process.status not in (Status.STOPPED, Status.CREATED):
                with contextlib.suppress(errors.NotFound):
                    await self._tasks.kill(namespace, name, "", signal.SIGKILL, everything=True)
                await self._ended(namespace, name)
            await self._tasks.delete(namespace, name)

    async def _ended(self, namespace: str, name: str) -> None:
        assert self._tasks is not None
        try:
            await asyncio.wait_for(self._tasks.wait(namespace, name), self._ending)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"it was killed, and has not ended within {self._ending:g} s") from None

    async def _start(self, namespace: str, container: Container) -> None:
        assert self._tasks is not None
        labels = container.labels
        count = labels.get(COUNT, "")
        number = int(count) + 1 if count.isdecimal() else 1
        log.info("restart monitor: starting %s/%s (attempt %d)", namespace, container.id, number)
        await self._node.set_label(namespace, container.id, COUNT, str(number))
        await self._stop(namespace, container.id)
        where = labels.get(LOG_URI, "") or (f"file://{labels[LOG_PATH]}" if labels.get(LOG_PATH) else "")
        spec = _spec(container)
        terminal = bool((spec.get("process") or {}).get("terminal"))
        io = IO(stdout=where, stderr=where, terminal=terminal) if where else IO()
        await self._tasks.create(
            namespace, container.id, CreateOptions(io=io, rootfs=await self._rootfs(namespace, container, spec))
        )
        try:
            await self._tasks.start(namespace, container.id)
        except errors.NodeError:
            with contextlib.suppress(errors.NodeError):
                await self._tasks.delete(namespace, container.id)
            raise

    async def _rootfs(self, namespace: str, container: Container, spec: Mapping[str, Any]) -> tuple[Mount, ...]:
        """The snapshot's mounts with the spec's SELinux label, as a client sends them when it creates the task."""
        if not container.snapshot_key:
            return ()
        if not container.snapshotter:
            raise errors.InvalidArgument(
                f"unable to resolve rootfs mounts without snapshotter on container {container.id}"
            )
        mounts = await self._node.mounts(namespace, container.snapshotter, container.snapshot_key)
        label = (spec.get("linux") or {}).get("mountLabel", "")
        return tuple(m._replace(options=(*m.options, f'context="{label}"')) for m in mounts) if label else mounts


@contextlib.contextmanager
def _recorded(operation: str, namespace: str, container: Container) -> Iterator[None]:
    """A trace of its own, since no client asked for this."""
    with tracing.root(operation) as root:
        about = {
            "splitd.operation": operation,
            "splitd.namespace": namespace,
            "container.id": container.id,
            "container.image.name": container.image,
            "splitd.snapshotter": container.snapshotter,
            "splitd.outcome": "failed",
        }
        root.put(about)
        yield
        root.put({"splitd.outcome": "ok"})


def _spec(container: Container) -> dict[str, Any]:
    return (
        specs.read(container.spec.value, f"spec of container {container.id}", errors.InvalidArgument)
        if container.spec is not None
        else {}
    )
