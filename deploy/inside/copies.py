"""A process of the node begins as a copy of supervisord, which has loaded what all of them need.

A Python process starts by executing a program and loading some 300 modules, which are then 15 MB of memory of its own.
Here supervisord loads them once. Its child does not execute Python anew but goes on in it, and shares with the others
each page that none of them writes. It stays a process as any: supervisord's child with a pid, signals, files, limits
and a log of its own, and with its own command line in ``ps``.

The child executes its program as supervisord would without this, if a file of a module that is loaded has been changed
since: after an upgrade, a process that is started again runs the new release alone. So it does where the kernel has no
way to give a process another command line, and where the modules could not be loaded.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal, without a search of an enum for each number
import atexit
import ctypes
import faulthandler
import gc
import importlib
import math
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from supervisor.options import ServerOptions

from deploy.inside.logs import complain

SHARED = (
    "api.containerd.events.container_pb2",
    "api.containerd.events.content_pb2",
    "api.containerd.events.image_pb2",
    "api.containerd.events.namespace_pb2",
    "api.containerd.events.snapshot_pb2",
    "api.containerd.events.task_pb2",
    "api.containerd.services.containers.v1.containers_pb2",
    "api.containerd.services.containers.v1.containers_stubs",
    "api.containerd.services.content.v1.content_stubs",
    "api.containerd.services.diff.v1.diff_pb2",
    "api.containerd.services.diff.v1.diff_stubs",
    "api.containerd.services.images.v1.images_pb2",
    "api.containerd.services.images.v1.images_stubs",
    "api.containerd.services.introspection.v1.introspection_stubs",
    "api.containerd.services.leases.v1.leases_pb2",
    "api.containerd.services.leases.v1.leases_stubs",
    "api.containerd.services.namespaces.v1.namespaces_stubs",
    "api.containerd.services.sandbox.v1.sandbox_pb2",
    "api.containerd.services.sandbox.v1.sandbox_stubs",
    "api.containerd.services.snapshots.v1.snapshots_stubs",
    "api.containerd.services.streaming.v1.streaming_stubs",
    "api.containerd.services.tasks.v1.tasks_pb2",
    "api.containerd.services.tasks.v1.tasks_stubs",
    "api.containerd.services.transfer.v1.transfer_pb2",
    "api.containerd.services.transfer.v1.transfer_stubs",
    "api.containerd.types.introspection_pb2",
    "api.containerd.types.transfer.imagestore_pb2",
    "api.containerd.types.transfer.importexport_pb2",
    "api.containerd.types.transfer.progress_pb2",
    "api.containerd.types.transfer.registry_pb2",
    "api.splitd.localfiles.v1.localfiles_pb2",
    "api.splitd.localfiles.v1.localfiles_stubs",
    "api.splitd.records.v1.records_pb2",
    "api.splitd.records.v1.records_stubs",
    "api.splitd.snapshotters.v1.snapshotters_pb2",
    "api.splitd.snapshotters.v1.snapshotters_stubs",
    "api.ttrpc.ttrpc_pb2",
    "hmac",
    "secrets",
    "services.content.blobs_remote",
    "services.content.convert",
    "services.content.remote",
    "services.kit.filters",
    "services.kit.gojson",
    "services.kit.health",
    "services.kit.holes",
    "services.kit.hops",
    "services.kit.inflate",
    "services.kit.kept",
    "services.kit.loop_devices",
    "services.kit.mounting",
    "services.kit.many",
    "services.kit.metrics_calls",
    "services.kit.metrics_stores",
    "services.kit.opt",
    "services.kit.otlp",
    "services.kit.otlp_spans",
    "services.kit.pipes",
    "services.kit.process",
    "services.kit.publisher",
    "services.kit.removals",
    "services.kit.shims",
    "services.kit.sqlite",
    "services.kit.stamp",
    "services.kit.tar",
    "services.kit.threads",
    "services.kit.ttrpc",
    "services.kit.version_server",
    "services.oci.descriptors_convert",
    "services.oci.media_types",
    "services.oci.mounts_convert",
    "services.oci.opaque_convert",
    "services.oci.platforms",
    "services.snapshots.convert",
    "services.snapshots.diff.inherit",
    "services.snapshots.diff.workers",
    "services.snapshots.programs",
    "services.snapshots.remote",
    "services.wire.blocking",
    "services.wire.channel",
    "services.wire.server",
    "tarfile",
    "uuid",
    "uvloop",
)
"""Modules that two processes or more need, with all that they import. What only one needs is loaded by it."""

_COMMAND = ["--pdeathsig", "TERM", sys.executable, "-m"]
"""What each command begins with, after the path of setpriv; a module and its arguments follow."""

_PR_SET_PDEATHSIG = 1
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_TICK = 10_000_000
"""Nanoseconds by which the clock of files' times may be late."""

Execute = Callable[[ServerOptions, str, list[str], dict[str, str]], Any]


def install() -> Copies | None:
    """Start processes as copies of this one from now on, if it has loaded what they need. Called before supervisord's
    main function. Returns None, and processes are started as programs, where the kernel does not tell what a copy needs
    to know.
    """
    try:
        made = Copies(_files(), began())
    except Exception as error:
        complain(f"processes cannot be copies: {error!r}")
        return None
    ServerOptions.execve = made.instead_of(ServerOptions.execve)
    return made


def _files() -> Iterator[str]:
    """The files of the modules that are loaded."""
    for module in [*sys.modules.values()]:
        if path := getattr(module, "__file__", None):
            yield path


_kept: list[bytes] = []


def fillings() -> Iterator[bytes]:
    """Objects in the places that Python's allocator has free between others, so that new ones of a copy lie in pages of
    their own: each that lay between the shared ones would take their page from the others.
    """
    for size in range(48, _LARGEST + 1, 16):
        length, first = size - sys.getsizeof(b""), 0
        for _ in range(_PLACES):
            yield (filling := bytes(length))
            place = id(filling) % _POOL
            if first and place == first + size:
                break  # the second of a pool that was empty
            first = place if place == _POOL_HEADER else 0


_LARGEST = 512
"""Bytes of the largest object that Python's allocator divides a pool for (Objects/obmalloc.c)."""
_POOL, _POOL_HEADER = 1 << 14, 48
_PLACES = 1000
"""Free ones of one size that are looked for; there were at most 300."""


def tidy() -> None:
    """Before a fork: a copy writes to fewer of the pages that it shares."""
    gc.collect()
    # the cache of methods has names that a copy would give up, one by one, as it takes others in
    clear = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache  # the former from 3.13
    clear()


class Copies:
    """Processes begin as copies while these files, of loaded modules, are as they were."""

    def __init__(self, files: Iterable[str], since: float = math.inf) -> None:
        """Raises OSError if a file is not there, or was changed after ``since`` (nanoseconds of the clock of files'
        times): what was loaded may be what it was before, or a part of it.
        """
        self._parent = os.getpid()
        self._names = Names()
        self._loaded = _identities(files, since)
        self._tried = False
        self.complete = False
        """Whether this process has loaded what its copies need."""
        self.sure = False
        """Whether somebody has just found the files unchanged."""

    def load(self) -> bool:
        """Load the shared modules in this process, if it has not. Returns whether copies can be made now: not if they
        cannot be loaded, nor if what is loaded is of another release than the files. Then processes are executed.
        """
        if not self.unchanged():
            return False
        if not self._tried:
            self._tried, since = True, time.time_ns() - _TICK
            try:
                for name in SHARED:
                    importlib.import_module(name)
                self._note(since)
            except Exception as error:  # supervisord must run; the processes will say the same, each in its log
                complain(f"modules cannot be loaded in advance: {error!r}")
                return False
            tidy()
            _libc().malloc_trim(0)
            _kept.extend(fillings())
            gc.freeze()  # a collection would write to each object, and so take its page from the others
            self.complete = True
        return self.complete

    def _note(self, since: float) -> None:
        """Take up the files of what was loaded meanwhile."""
        known = {*self._loaded.split("\0")[::2]}
        new = _identities((path for path in _files() if path not in known), since)
        self._loaded = "\0".join(filter(None, (self._loaded, new)))

    def unchanged(self) -> bool:
        words = self._loaded.split("\0") if self._loaded else []
        try:
            return all(identity(path) == known for path, known in zip(words[::2], words[1::2], strict=True))
        except OSError:
            return False

    def instead_of(self, execve: Execute) -> Execute:
        """The method of supervisord by which a forked process executes its program."""

        def begin(options: ServerOptions, filename: str, argv: list[str], environment: dict[str, str]) -> Any:
            ours = argv[1 : 1 + len(_COMMAND)] == _COMMAND
            if ours and self.complete and (self.sure or self.unchanged()):
                try:
                    self._names.give(argv[3:], environment)
                except OSError:
                    pass
                else:
                    _run(argv[5], argv[6:], environment, self._parent)
            return execve(options, filename, argv, environment)

        return begin


def began() -> int:
    """When this process began, or a tick later, in nanoseconds of the clock of files' times. Nothing of ours is loaded
    so soon.
    """
    since_boot = (int(_stat()[19]) + 1) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME) + since_boot


def _stat() -> list[bytes]:
    """What /proc says of this process, from its state on: the third field in proc_pid_stat(5) is the first here."""
    with open("/proc/self/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()


def _identities(files: Iterable[str], since: float) -> str:
    """Paths and identities of files. A copy makes pieces of this one string: the strings of the modules lie in as many
    pages as there are modules, and a copy that used each of them would have these pages for itself. OSError if a file
    was changed after ``since``.
    """
    files = list(files)
    told = "\0".join(word for path in files for word in (path, identity(path)))
    for path in files:  # after that: what is changed later has another identity
        if os.stat(path).st_ctime_ns > since:
            raise OSError(f"{path} was changed while it was loaded")
    return told


def identity(path: str) -> str:
    """Device, inode, size and time of the last change of a file."""
    found = os.stat(path)
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


class _Map(ctypes.Structure):
    """struct prctl_mm_map of linux/prctl.h."""

    _fields_ = (
        *(
            (name, ctypes.c_uint64)
            for name in (
                "start_code",
                "end_code",
                "start_data",
                "end_data",
                "start_brk",
                "brk",
                "start_stack",
                "arg_start",
                "arg_end",
                "env_start",
                "env_end",
                "auxv",
            )
        ),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_int32),
    )


class Names:
    """What it takes to give a copy another command line and environment, asked of the kernel in advance."""

    def __init__(self) -> None:
        libc = _libc()
        libc.sbrk.restype = ctypes.c_void_p
        fields = _stat()
        # proc_pid_stat(5) counts from 1, and the two before the parenthesis are cut off
        code, end_code, stack, data, end_data, brk = (int(fields[each - 3]) for each in (26, 27, 28, 45, 46, 47))
        self._map = _Map(code, end_code, data, end_data, brk, 0, stack, exe_fd=-1)
        self._sbrk, self._prctl = libc.sbrk, libc.prctl
        self._text: Any = None
        """The memory in which the kernel finds command line and environment of this process."""

    def give(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Give this process another command line and environment in /proc, as if it had been executed with them.
        Nothing else changes. Raises OSError if the kernel does not allow it (it does from 3.18 on, without privileges,
        if it can checkpoint processes).
        """
        words = b"".join(os.fsencode(word) + b"\0" for word in command)
        variables = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
        text, told = ctypes.create_string_buffer(words + variables), self._map
        told.brk = self._sbrk(0)
        told.arg_start = ctypes.addressof(text)
        told.arg_end = told.env_start = told.arg_start + len(words)
        told.env_end = told.env_start + len(variables)
        if self._prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(told), ctypes.c_ulong(ctypes.sizeof(told)), 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._text = text


def _run(module: str, arguments: list[str], environment: Mapping[str, str], parent: int) -> NoReturn:
    """Run ``python -m MODULE`` in this process, which ends with it."""
    from services.kit import memory  # it is loaded; supervisord has none of this

    # Objects of supervisord are never freed here: the numbers of their files, which are closed, may be those of other
    # files of this process.
    memory.shares()
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        if callable(_signal.getsignal(number)):
            _signal.signal(number, _signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.unregister(signal.SIGUSR1)
    # setpriv is asked to do this where a program is executed: if supervisord is killed, its processes end
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
    os.environ.clear()
    os.environ.update(environment)
    if environment.get("PYTHONMALLOC") == "malloc":
        memory.from_malloc()
    go_on(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), [module, *arguments])


def go_on(program: Callable[[], object], arguments: list[str]) -> NoReturn:
    """Run a program in this process, which is a copy, and ends as Python does with a program."""
    sys.argv = arguments
    code = 1
    try:
        program()
        code = 0
    except SystemExit as error:
        code = _code(error.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # as Python ends, but without freeing what the original left
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _code(given: Any) -> int:
    """The exit status for the argument of sys.exit."""
    if given is None:
        return 0
    if isinstance(given, int):
        return given & 0xFF
    print(given, file=sys.stderr)
    return 1
