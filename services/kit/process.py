"""What each process of a node does before and after it serves: arguments, logging, the lock on its directory, signals.

    def main() -> None:
        process.run("content", serve)          # serve(config_file, node) is a coroutine function

Every process names its state directory on its command line (``--state``), so that ``ps`` tells which node it belongs
to.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import getopt
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from services.kit import (
    at_work,
    config,
    errors,
    exporting,
    logs,
    memory,
    metrics,
    observer,
    rpc,
    settings,
    stacks,
    tracing,
    turns,
    version,
)
from services.kit.faults import fault
from services.kit.heartbeat import SOCKET, Heartbeat
from services.kit.slices import SLICE
from services.wire import limits

log = logging.getLogger(__name__)

STARTS = "starts"
"""A directory in STATE with a file for each process: how often it was started in this boot."""

Serve = Callable[[settings.File, settings.Node], Awaitable[None]]


@contextlib.contextmanager
def owned(directory: Path, patience: float = 10.0) -> Iterator[Path]:
    """Make ``directory`` (0700) and hold its lock: one process serves it at a time, and only that one may replace its
    socket.

    If another process holds the lock, this waits ``patience`` seconds, since a successor may start while its
    predecessor drains. Then FailedPrecondition names the directory. The lock is a flock on the directory itself, so it
    leaves no file and ends with its holder.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise errors.FailedPrecondition(f"{directory} is served by another process") from None
                time.sleep(0.02)
        at_work.owns(fd)
        yield directory
    finally:
        os.close(fd)


_heartbeat: Heartbeat | None = None
_name = "a service"
"""The name of this process, for its log."""


async def until_signal() -> None:
    """Wait for SIGTERM or SIGINT. Meanwhile the process serves, and sends beats to the watchdog."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[signal.Signals] = loop.create_future()

    def tell(number: signal.Signals) -> None:
        if not stop.done():
            stop.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell, number)
    if _heartbeat is not None:
        _heartbeat.begin(loop)
    log.info("%s serves: version %s, pid %d", _name, version.VERSION, os.getpid())
    told = await stop
    log.info("%s stops: %s", _name, told.name)
    if _heartbeat is not None:
        _heartbeat.end()


def run(name: str, serve: Serve, *, traced: bool = True) -> None:
    """The main function of the process ``name``: parse the arguments, serve until a signal, exit. ``traced``: whether
    it makes spans, if the node does.

    A process that cannot start says why in one line, and waits a second before it exits, so that its supervisor does
    not spin.
    """
    arguments = _arguments(name, sys.argv[1:])
    version.revision()  # read before the code is loaded, since from here on an upgrade may replace it at any time
    global _heartbeat
    with alone(name):
        file = settings.read(arguments.get("config"))
        node = settings.load(settings.Node, file, "", root=arguments.get("root"), state=arguments.get("state"))
        grpc = config.load(file)
        _heartbeat = Heartbeat(name, node.state / SOCKET, settings.load(config.Watchdog, file, "watchdog"))
        rpc.choose(grpc.transport)
        limits.configure(grpc.limits)
        if traced:
            exporting.begin(name, settings.load(config.Tracing, file, "tracing"), node.state, arguments.get("config"))
        _count(config.load_metrics(file))
        os.environ.pop("PYTHONMALLOC", None)  # ours (deploy/processes.py), not that of the programs that we start
        tune()
        _keep(file, node, name)
        _note_start(node.state / STARTS, name)
        fault(f"{name}.start")
        run_loop(watched(serve(file, node)))


def _arguments(name: str, words: list[str]) -> dict[str, Path]:
    """The paths that the command line names, by option. Wrong words end the process with 2. (argparse would take half a
    megabyte, in each process.)
    """
    usage = f"""usage: splitd-{name} [--config FILE] [--root DIR] [--state DIR]
  --config FILE  TOML file; default: none, all defaults
  --root DIR     directory of everything that survives a reboot
  --state DIR    directory of sockets and other files of this boot"""
    try:
        found, others = getopt.gnu_getopt(words, "h", ["help", "config=", "root=", "state="])
    except getopt.GetoptError as error:
        print(f"{usage}\nsplitd-{name}: {error}", file=sys.stderr)
        sys.exit(2)
    options = {option.lstrip("-"): Path(value) for option, value in found}
    if options.keys() & {"h", "help"}:
        print(usage)
        sys.exit(0)
    if others:
        print(f"{usage}\nsplitd-{name}: {others[0]} has no meaning here", file=sys.stderr)
        sys.exit(2)
    return options


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """The block is all that the process ``name`` does. It logs on standard error, also why it cannot run, and sends its
    last spans at the end. A process that cannot run waits a second before it exits with 1.
    """
    global _name
    _name = name
    stacks.register()
    logs.configure()
    try:
        yield
        log.info("%s has stopped", name)
    except Exception as error:
        expected = isinstance(error, (errors.NodeError, OSError, ValueError))
        log.error("%s cannot run: %s", name, error, exc_info=None if expected else error)
        time.sleep(1)
        sys.exit(1)
    finally:
        tracing.shutdown()


def tune() -> None:
    """Make this process fit for many calls, and import what they need."""
    rpc.load()
    many_files()
    _less_garbage_collection()
    memory.few_arenas()
    _short_waits()


def _count(chosen: config.Metrics) -> None:
    """Begin to count what this process does, if the metrics are served anywhere."""
    if chosen.address:
        from services.kit.metrics_calls import Calls

        metrics.begin()
        observer.listen(Calls(histogram=chosen.grpc_histogram).began)


def starts_in(file: Path) -> int:
    """The starts that ``file`` counts; 0 if it does not exist, or has no number. Raises other OSErrors."""
    try:
        count = file.read_bytes()
    except FileNotFoundError:
        return 0
    return int(count) if count.isdigit() and len(count) < 10 else 0


def _note_start(directory: Path, name: str) -> None:
    """Count the starts of this process in this boot, in a file, since a process that restarts knows nothing else of it.
    If that fails, as on a full disk, the service runs all the same.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = directory / name
        file.write_text(str(starts_in(file) + 1))
    except OSError as error:
        log.warning("%s: %s", directory / name, error.strerror)


def _keep(file: settings.File, node: settings.Node, name: str) -> None:
    """Store the configuration that this process uses. If that fails, as on a full disk, the service runs all the
    same.
    """
    try:
        settings.keep(file, node.state, name)
    except OSError as error:
        log.warning("the configuration cannot be stored, so splitd config dump shows an older one: %s", error)


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """``asyncio.run``, on uvloop if the wire carries our calls. Under grpcio uvloop gains nothing (docs/adr/0002)."""
    if rpc.transport() == "wire":
        import uvloop

        uvloop.run(main)
    else:
        asyncio.run(main)


def many_files() -> None:
    """Allow as many open files as possible: each connection is one, and the usual soft limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _less_garbage_collection() -> None:
    """Collect garbage less often. Loaded modules stay, and hardly any object of a call is part of a cycle, so a
    collection every 700 objects takes 3 % of a relay's time for nothing.
    """
    gc.freeze()
    # A collection takes 1 us for each new object, and twice that where other load has emptied the caches; meanwhile all
    # calls wait. So it looks at few: 1 ms for the young generation, 10 ms for the middle one. Most come while a client
    # makes many objects that live on, as large filters do.
    gc.set_threshold(1_000, 10, 125)


async def watched(serving: Awaitable[None]) -> None:
    """Wait for ``serving``, the work of this process, and then for what its calls have left to do."""
    turns.watch(_name)
    try:
        async with memory.giving_back():
            await serving
    finally:
        await rpc.shielded_work_done(3.0)


def _short_waits() -> None:
    """Limit how long the loop waits for a computing thread, each time after it has waited for anything. The default is
    5 ms.
    """
    sys.setswitchinterval(SLICE)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies (PR_SET_PDEATHSIG). For worker programs."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
