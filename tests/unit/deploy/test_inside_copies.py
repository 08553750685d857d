"""A process that begins as a copy of supervisord is as one that was executed; and when it is executed after all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.inside import copies
from deploy.place import TOP

COMMAND = ["/usr/bin/setpriv", "--pdeathsig", "TERM", sys.executable, "-m"]

SUPERVISOR = """
import faulthandler, os, signal, sys, threading
from deploy.inside import copies, children
from supervisor.options import ServerOptions

faulthandler.register(signal.SIGUSR1)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGHUP, lambda *_: None)
reader, writer = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(writer)
executes = ServerOptions.execve
made = copies.install()
assert "services.kit.memory" not in sys.modules
assert made.load()
assert ServerOptions.execve is not executes
pid = os.fork()
if not pid:
    os.closerange(3, 100)
    ServerOptions.execve(None, "/usr/bin/setpriv", sys.argv[1:], {"PATH": os.environ["PATH"], "OWN": "yes"})
print(os.getpid(), pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

PROGRAM = """
import atexit, ctypes, json, os, signal, sys, threading, time
from pathlib import Path

def said(name):
    return [word.decode() for word in Path("/proc/self", name).read_bytes().split(b"\\0")[:-1]]

death = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(death), 0, 0, 0)
handled = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGUSR1)
facts = {
    "shared": "services.wire.server" in sys.modules,
    "name": __name__,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "argv": sys.argv,
    "cmdline": said("cmdline"),
    "environ": said("environ"),
    "variables": dict(os.environ),
    "parent": os.getppid(),
    "death": death.value,
    "default": [each is signal.SIG_DFL for each in handled],
    "wakeup": signal.set_wakeup_fd(-1),
    "files": sorted(int(each) for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}")),
}
Path(sys.argv[1]).write_text(json.dumps(facts))
atexit.register(lambda: print("at exit", flush=True))
threading.Thread(target=lambda: (time.sleep(0.01), print("in a thread"))).start()
END
"""


def begun(place: Path, ending: str = "", *arguments: str) -> tuple[list[int], str, str]:
    """Run the program as a copy. Returns the pids of both and the exit status, and what the program printed."""
    (place / "a_program").mkdir()
    (place / "a_program" / "__init__.py").touch()
    (place / "a_program" / "__main__.py").write_text(PROGRAM.replace("END", ending))
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISOR, *COMMAND, "a_program", str(place / "facts"), *arguments],
        env={**os.environ, "PYTHONPATH": f"{TOP}:{place}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *printed, numbers = done.stdout.splitlines()
    return [int(each) for each in numbers.split()], "\n".join(printed), done.stderr


def test_a_copy_is_a_process_as_if_it_was_executed(tmp_path: Path) -> None:
    """It has its own command line, variables and signals, no files of supervisord, and ends when supervisord does."""
    (parent, _, status), printed, _ = begun(tmp_path, "", "--state", "a state")
    facts = json.loads((tmp_path / "facts").read_text())
    command = [sys.executable, "-m", "a_program", str(tmp_path / "facts"), "--state", "a state"]
    assert facts.pop("argv") == [str(tmp_path / "a_program" / "__main__.py"), *command[3:]]
    assert facts.pop("environ") == [f"PATH={os.environ['PATH']}", "OWN=yes"]
    assert facts.pop("variables") == {"PATH": os.environ["PATH"], "OWN": "yes"}
    assert facts == {
        "shared": True,
        "name": "__main__",
        "main": True,
        "cmdline": command,
        "parent": parent,
        "death": 15,
        "default": [True, True, True],
        "wakeup": -1,
        "files": [0, 1, 2],
    }
    assert status == 0
    assert printed.splitlines() == ["in a thread", "at exit"]


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no root')", 1, "no root\n"),
        ("raise ValueError('its bug')", 1, "ValueError: its bug\n"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -15, ""),
    ],
)
def test_a_copy_ends_as_a_program_does(ending: str, status: int, said: str, tmp_path: Path) -> None:
    """supervisord gets its exit status, and its log the reason."""
    (_, _, exited), _, error = begun(tmp_path, ending)
    assert exited == status
    assert error.endswith(said)
    assert bool(error) == bool(said)


class Executed(Exception):
    """Says what was executed."""


def execve(_options: Any, filename: str, argv: list[str], environment: dict[str, str]) -> None:
    raise Executed(filename, argv, environment)


def complete() -> copies.Copies:
    """As of a supervisord that has loaded the modules."""
    made = copies.Copies([])
    made.complete = True
    return made


def test_a_process_whose_code_has_changed_is_executed(tmp_path: Path) -> None:
    """After an upgrade, a service that is started again must not have old modules beside new ones."""
    module = tmp_path / "module.py"
    module.write_text("A = 1\n")
    made = copies.Copies([str(module)])
    made.complete = True
    begin = made.instead_of(execve)
    for change in (lambda: module.write_text("A = 22\n"), module.unlink):
        change()
        with pytest.raises(Executed) as error:
            begin(SimpleNamespace(), "setpriv", [*COMMAND, "services.content"], {"A": "b"})
        assert error.value.args == ("setpriv", [*COMMAND, "services.content"], {"A": "b"})


def test_another_program_is_executed() -> None:
    """supervisord may be given programs of others."""
    begin = complete().instead_of(execve)
    for argv in (["sleep", "1"], ["/usr/bin/setpriv", "--pdeathsig", "TERM", "/usr/bin/python3", "-m", "x"]):
        with pytest.raises(Executed):
            begin(SimpleNamespace(), argv[0], argv, {})


def test_where_a_process_cannot_have_another_command_line_it_is_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels can do it that checkpoint processes. Without it nobody could tell the processes apart."""

    def named(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(copies.Names, "give", named)
    with pytest.raises(Executed):
        complete().instead_of(execve)(SimpleNamespace(), "setpriv", [*COMMAND, "services.content"], {})


def test_modules_that_cannot_be_loaded_do_not_stop_supervisord(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each process is executed then, and says in its own log what is wrong."""
    monkeypatch.setattr(copies, "SHARED", ("services.no_such_module",))
    made = copies.Copies([])
    assert not made.load()
    assert "No module named 'services.no_such_module'" in capsys.readouterr().err
    with pytest.raises(Executed):
        made.instead_of(execve)(SimpleNamespace(), "setpriv", [*COMMAND, "services.content"], {})
    assert not made.load()


def test_modules_of_another_release_are_not_loaded(tmp_path: Path) -> None:
    """An upgrade may come before a process is started again for the first time: supervisord has modules of the old."""
    (module := tmp_path / "module.py").write_text("A = 1\n")
    made = copies.Copies([str(module)])
    module.write_text("A = 22\n")
    assert not made.load()
    assert not made.complete


def test_a_file_that_was_changed_while_it_was_loaded_makes_no_copies(tmp_path: Path) -> None:
    """During an upgrade: what supervisord has loaded may be the old file, or a part of the new one, and nothing that is
    looked at later would show it. The processes are executed then, from the files as they are.
    """
    (changed := tmp_path / "changed_meanwhile.py").write_text("A = 1\n")  # written after this process began
    copies.Copies([str(changed)], time.time_ns() + 10**9)
    with pytest.raises(OSError, match=r"changed_meanwhile\.py was changed while it was loaded"):
        copies.Copies([str(changed)], copies.began())


def test_a_shared_module_that_changes_while_it_is_loaded_makes_no_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Likewise."""
    (tmp_path / "writes_itself.py").write_text("with open(__file__, 'a') as file:\n    file.write('A = 1\\n')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(copies, "SHARED", ("writes_itself",))
    made = copies.Copies([])
    monkeypatch.delitem(sys.modules, "writes_itself", raising=False)
    assert not made.load()
    assert "writes_itself.py was changed while it was loaded" in capsys.readouterr().err
