"""supervisord: makes its configuration from the template, starts it, and asks it.

supervisord keeps the node's processes running and does nothing else. It is asked over XML-RPC on STATE/supervisor.sock.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import resource
import shlex
import shutil
import string
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy import compiled, configuration, running
from deploy.failure import Failure
from deploy.place import TOP, Place, load_node, recall, same
from deploy.processes import ALL, STOP_SECONDS, Process, of, optional
from services.kit import cgroups, clock, config, settings, supervisor

TEMPLATE = Path(__file__).with_name("supervisord.conf")
OPEN_FILES = 16384
"""Files that a process may open, if the machine allows so many."""

RUNNING = "RUNNING"
ABSENT = "ABSENT"
"""Our word for a process that the running supervisord does not know, since an earlier splitd started it."""

_INSIDE = b"deploy.inside"
"""The module that supervisord is started as."""

LOOKED_SECONDS = 0.2
"""Seconds to wait while a process that only looks whether the node is up, as ``splitd status`` does, has the node's
lock.
"""

PASSED_ON = frozenset(
    {
        "PATH",
        "HOME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
    }
)
PASSED_ON_PREFIXES = ("OTEL_", "SPLITD_", "GRPC_", "SSL_CERT_", "LC_")
"""The environment variables that `splitd up` passes to the node. Other variables of an operator's shell are not passed.
"""

SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Added to PATH if missing: runc is in /usr/sbin, which a user's PATH does not have."""


def environment(caller: Mapping[str, str]) -> dict[str, str]:
    """The node's environment, made of the caller's."""
    chosen = {
        k: v for k, v in caller.items() if k in PASSED_ON or (k.startswith(PASSED_ON_PREFIXES) and k != cgroups.BACK)
    }
    path = [p for p in chosen.get("PATH", "").split(":") if p]
    chosen["PATH"] = ":".join([*path, *(p for p in SYSTEM_PATH if p not in path)])
    chosen["PYTHONUNBUFFERED"] = "1"
    chosen[clock.VARIABLE] = str(clock.anchor())
    return chosen


def render(place: Place) -> str:
    """The configuration of supervisord for a node."""
    head = TEMPLATE.read_text().partition("[program:$name]")[0]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    values = {
        "top": _escaped(TOP),
        "state": _escaped(place.state),
        "logs": _escaped(place.logs),
        "minfds": str(OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)),
    }
    file = settings.read(place.config)
    watchdog = settings.load(config.Watchdog, file, "watchdog")
    values |= {
        "watchdog": _escaped(place.watchdog_socket),
        "silence": str(watchdog.silence or math.inf),
        "start": str(watchdog.start if watchdog.silence else math.inf),
        "beat": str(watchdog.beat),
    }
    text = string.Template(head).substitute(values)
    return text + "".join(program(place, process, file) for process in of(file))


def program(place: Place, process: Process, file: settings.File) -> str:
    """The section of one process."""
    _, mark, section = TEMPLATE.read_text().partition("[program:$name]")
    values = {
        "name": process.name,
        "module": process.module,
        "environment": ",".join(f'{name}="{value}"' for name, value in process.environment),
        "priority": str(100 + ALL.index(process)),
        "stop_seconds": str(stop_seconds(process, file)),
        "setpriv": _escaped(_argument(shutil.which("setpriv", path=os.pathsep.join(SYSTEM_PATH)) or "setpriv")),
        "python": _escaped(_argument(sys.executable)),
        "config": _escaped(f" --config {_argument(place.config)}") if place.config else "",
        "root": _escaped(_argument(place.root)),
        "state": _escaped(_argument(place.state)),
        "log": _escaped(_escaped(place.log(process.name))),  # supervisord expands this one twice
        "top": _escaped(TOP),
    }
    return string.Template(mark + section).substitute(values) + "\n"


def stop_seconds(process: Process, file: settings.File) -> int:
    """Seconds that supervisord waits for a process to end before it kills it."""
    return STOP_SECONDS + max(0, math.ceil(configuration.grace(process, file)) - 5)


def _argument(path: str | Path) -> str:
    return shlex.quote(str(path))


def _escaped(text: str | Path) -> str:
    return str(text).replace("%", "%%")


@dataclass(frozen=True, slots=True)
class Status:
    """One process as supervisord sees it."""

    name: str
    state: str
    """supervisord's word: RUNNING, STOPPED, STOPPING, EXITED, BACKOFF, FATAL."""
    pid: int
    uptime: float
    restarts: int
    """How often it ended by itself and was started again since supervisord started."""
    trouble: str
    """The reason if it could not be started, else ""."""
    watched: Watched


@dataclass(frozen=True, slots=True)
class Watched:
    """The watchdog's knowledge of a process, and of earlier ones of the same name."""

    silent: float = 0.0
    """Seconds without a beat, if that is longer than usual; else 0.0."""
    killed: int = 0
    """How many hung and were killed since supervisord started."""
    why: str = ""
    """The reason of the last kill."""
    at: float = 0.0
    """The time of the last kill, in seconds since the epoch."""


class Supervisor:
    """The supervisord of a node that is up. Every method may raise NotUp."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def pid(self) -> int:
        """The pid of supervisord itself."""
        return int(self._call("getPID"))

    def processes(self) -> dict[str, Status]:
        """All processes by name, in the order of the table; of the optional ones those that this node has."""
        infos = {info["name"]: info for info in self._call("getAllProcessInfo")}
        seen = self._seen()
        found = {}
        for process in ALL:
            info = infos.get(process.name)
            if info is None and optional(process.name):
                continue
            if info is None:
                found[process.name] = Status(
                    process.name,
                    ABSENT,
                    0,
                    0.0,
                    0,
                    "this node was started by a splitd without it: down, then up",
                    Watched(),
                )
                continue
            running = info["statename"] == RUNNING
            ended, watched = seen.get(process.name, (0, Watched()))
            found[process.name] = Status(
                process.name,
                info["statename"],
                info["pid"] if running else 0,
                float(info["now"] - info["start"]) if running else 0.0,
                ended,
                info["spawnerr"],
                watched,
            )
        return found

    def _seen(self) -> dict[str, tuple[int, Watched]]:
        """What our code inside supervisord knows of each process: how often it ended by itself, and the watchdog's
        knowledge.
        """
        try:
            infos = self._call("watchdog.getStatus")
        except Unknown:
            return {}  # this node was started by a splitd without a watchdog
        return {
            info["name"]: (info["ended"], Watched(info["silent"], info["killed"], info["why"], info["at"]))
            for info in infos
        }

    def code(self) -> str:
        """The digest of our code that it runs (``version.supervisors``); "" if it was started by a splitd that did not
        note it.
        """
        try:
            return str(self._call("watchdog.getCode"))
        except Unknown:
            return ""

    def start(self, process: Process) -> None:
        """Start a process that is stopped."""
        self._call("startProcess", process.name, True)

    def stop(self, process: Process) -> None:
        """Stop a process: SIGTERM, then SIGKILL after STOP_SECONDS. It stays stopped."""
        with contextlib.suppress(NotRunning):
            self._call("stopProcess", process.name, True, timeout=running.stop_seconds(self._place, process) + 10.0)

    def add(self, process: Process) -> None:
        """Take in a process that is in the configuration since supervisord was started, and start it."""
        self._call("reloadConfig")
        self._call("addProcessGroup", process.name)

    def remove(self, process: Process) -> None:
        """Stop a process for good."""
        self.stop(process)
        self._call("removeProcessGroup", process.name)

    def shutdown(self) -> None:
        """Stop all processes and then supervisord itself. Returns at once."""
        self._call("shutdown")

    def _call(self, method: str, *arguments: Any, timeout: float = 10.0) -> Any:
        try:
            return supervisor.call(self._place.supervisor_socket, method, *arguments, timeout=timeout)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == 1:
                raise Unknown(f"supervisord knows no {method}") from None
            if fault.faultCode == 70:
                raise NotRunning(f"{arguments[0]} is not running") from None
            raise Failure(
                f"supervisord refused {method} {' '.join(map(str, arguments))}: {fault.faultString}"
            ) from None
        except PermissionError:
            raise Failure(f"{self._place.supervisor_socket} is not yours: run this as root (sudo)") from None
        except (FileNotFoundError, ConnectionRefusedError):
            if pid := pid_of(self._place):
                raise Unreachable(
                    f"supervisord (pid {pid}) runs, but nothing listens at {self._place.supervisor_socket}; if the "
                    "socket was "
                    "removed, supervisord makes it again within a second: "
                    f"see {self._place.hint('logs supervisord')}; {self._place.hint('down')} ends it all the same"
                ) from None
            raise not_up(self._place) from None
        except supervisor.ERRORS as error:
            raise Failure(f"supervisord at {self._place.supervisor_socket} does not answer: {error!r}") from None


_AGAIN = 3.0
"""Seconds within which supervisord makes a removed socket again (``deploy/inside/sockets.py``)."""


def reached(place: Place) -> Supervisor:
    """The supervisord of a node, once it answers. If its socket was just removed, this waits for the new one. Raises
    the Failures of any call.
    """
    end = time.monotonic() + _AGAIN
    supervisor = Supervisor(place)
    while True:
        try:
            supervisor.pid()
            return supervisor
        except Unreachable:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class NotUp(Failure):
    """There is no supervisord for this state directory."""


class Unreachable(Failure):
    """There is a supervisord, but not its socket."""


class Unknown(Failure):
    """supervisord does not know the method."""


class NotRunning(Failure):
    """supervisord was asked to stop a process that is stopped."""


def not_up(place: Place) -> NotUp:
    """The error of every verb for a node that is not up."""
    return NotUp(f"no node is up at {place.state} (start it: {place.hint('up')})", 3)


# ------------------------------------------------------------------------------------------ starting and ending


def is_up(place: Place) -> bool:
    """Whether the node's supervisord runs: it holds the node's lock, or its process exists although the lock file was
    removed.
    """
    try:
        with open(place.lock, "rb") as file:
            if not _try_lock(file.fileno(), fcntl.LOCK_SH):
                return True
    except FileNotFoundError:
        pass
    except PermissionError:
        raise Failure(f"{place.lock} is not readable: run this as root (sudo)") from None
    return pid_of(place) != 0


def pid_of(place: Place) -> int:
    """The pid of the node's supervisord, found among the machine's processes by its command line; 0 if there is none.

    A supervisord in a container may have the same paths but other files. It does not count.
    """
    wanted = os.fsencode(place.supervisord_conf)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # the process has ended meanwhile
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if wanted in words and _INSIDE in words and _means(entry, place.supervisord_conf):
                    return int(entry.name)
    return 0


def _means(process: Path, path: Path) -> bool:
    """Whether ``path`` is the same file for a process (its directory in /proc) as for us, or missing for both."""
    try:
        return _file(Path(f"{process}/root{path}")) == _file(path)
    except PermissionError:
        return True  # a user who may not look at it is told elsewhere that the node is not his


def _file(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def claimed(place: Place, looked: float = LOOKED_SECONDS) -> Iterator[int | None]:
    """The node's lock, as a file descriptor that supervisord inherits. None if a supervisord has it already, or runs
    although the file was removed.

    For ``looked`` seconds this waits for processes that have the lock only to look.
    """
    place.state.mkdir(parents=True, exist_ok=True, mode=0o711)
    fd = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd if not pid_of(place) and wait(lambda: _try_lock(fd, fcntl.LOCK_EX), looked, 0.01) else None
    finally:
        os.close(fd)


USED_BY = "used-by"
"""A file in a root: the state directory of the node that used the root last. It is not called "state", since that may
be the state directory itself.
"""


def owner(root: Path) -> Path | None:
    """The state directory of the node that used ``root`` last; None if none did."""
    try:
        return Path((root / USED_BY).read_text().strip())
    except FileNotFoundError:
        return None


def claim_root(place: Place, *, moved: bool = False) -> None:
    """Refuse a root that a node with another state directory is using: its services would wait for each other's locks.

    A copy of such a root has the same file. With ``moved`` the root belongs to this node from now on.
    """
    other = owner(place.root) or place.state
    if other != place.state and (other / place.lock.name).exists():
        fd = os.open(other / place.lock.name, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not _try_lock(fd, fcntl.LOCK_EX):
                theirs = recall(other)
                # if their root is gone, it was renamed below its node
                if theirs is None or not theirs.root.exists() or same(theirs.root, place.root):
                    raise Failure(
                        f"the root {place.root} is in use by the node at {other}: choose another root, or splitd down "
                        f"--state {other} first"
                    )
                if not moved:
                    raise Failure(
                        f"the root {place.root} is a copy of {theirs.root}, which the node at {other} is using: "
                        "--moved makes the copy this node's own"
                    )
        finally:
            os.close(fd)
    if owner(place.root) != place.state:  # a full disk would leave nothing in the file
        (place.root / USED_BY).write_text(f"{place.state}\n")


def prepare(place: Place) -> list[str]:
    """Write the files that supervisord reads, and return its command line."""
    place.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    # images may hold programs with set-user-id bits, and secrets: only root may enter (CVE-2024-25621)
    place.root.chmod(0o700)
    claim_root(place)
    place.supervisord_conf.write_text(render(place))
    compiled.ready(TOP)
    running.keep(place)
    place.remember()
    score = load_node(place.config).oom_score
    group = settings.load(config.Cgroup, settings.read(place.config), "cgroup").path
    return [
        *([sys.executable, "-m", "services.kit.cgroups", group] if group else []),
        *(["choom", "-n", str(score), "--"] if score else []),
        sys.executable,
        "-m",
        _INSIDE.decode(),
        "-c",
        str(place.supervisord_conf),
    ]


def start(place: Place, lock: int, seconds: float) -> None:
    """Start supervisord in a session of its own, and wait until it answers."""
    said = place.state / "supervisord.out"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [*prepare(place), "--silent"],
            cwd=TOP,
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=(lock,),
            start_new_session=True,
        )
    wait(lambda: process.poll() is not None or answers(place), seconds)
    if process.poll() is not None or not answers(place):
        lines = said.read_text(errors="replace").strip().splitlines()
        raise Failure(
            f"supervisord did not start: {lines[-1] if lines else f'exit code {process.poll()}'} (see "
            f"{place.logs / 'supervisord.log'})"
        )


def become(place: Place, lock: int) -> None:
    """Replace this process by supervisord, for systemd or a terminal. Does not return."""
    os.set_inheritable(lock, True)
    command = prepare(place)
    os.chdir(TOP)
    notify = {"NOTIFY_SOCKET": os.environ["NOTIFY_SOCKET"]} if "NOTIFY_SOCKET" in os.environ else {}
    os.execvpe(command[0], command, environment(os.environ) | notify)


def answers(place: Place) -> bool:
    try:
        Supervisor(place).pid()
    except Failure:
        return False
    return True


def wait(condition: Callable[[], object], seconds: float, pause: float = 0.05) -> bool:
    """Poll ``condition`` for at most ``seconds``. The result is whether it became true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True
