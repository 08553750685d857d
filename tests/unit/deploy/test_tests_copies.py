"""A program that tests start as a copy (tests/copies.py) is as one that was executed."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import copies
from tests.support import TOP, eventually, short_directory
from tests.unit.deploy.test_imports import python_files

PROGRAM = """
import json, os, signal, sys, threading
from pathlib import Path

print(json.dumps({
    "argv": sys.argv,
    "name": __name__,
    "cmdline": Path("/proc/self/cmdline").read_text().split("\\0")[:-1],
    "environ": sorted(Path("/proc/self/environ").read_text().split("\\0")[:-1]),
    "variables": dict(os.environ),
    "directory": os.getcwd(),
    "path": [*dict.fromkeys(sys.path)],
    "files": sorted(int(each) for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}")),
    "streams": [
        (each.encoding, each.errors, each.line_buffering, each.fileno()) for each in (sys.stdin, sys.stdout, sys.stderr)
    ],
    "signals": {each.name: str(signal.getsignal(each)) for each in signal.Signals},
    "blocked": [each.name for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "threads": threading.active_count(),
    "input": sys.stdin.read(),
    "flags": str(sys.flags),
}, indent=1))
print("an error", file=sys.stderr)
raise SystemExit(int(sys.argv[1]))
"""


def executed(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=TOP,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def both(
    command: list[str], environment: dict[str, str]
) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """What it does as a copy, and executed."""
    return copies.run(command, environment, 60), executed(command, environment)


def test_a_copy_is_as_a_program_that_was_executed(place: Path) -> None:
    """It cannot tell the difference; nor can who waits for it, or looks for it with ps."""
    program = place / "a_program.py"
    program.write_text(PROGRAM)
    copy, execution = both(
        [sys.executable, str(program), "7", "a word"], {**os.environ, "PYTHONPATH": str(TOP), "A": "\n"}
    )
    assert copy.stdout == execution.stdout
    assert (copy.args, copy.returncode, copy.stderr) == (execution.args, 7, "an error\n")


@pytest.mark.parametrize("words", [("--help",), ("up", "--what"), ("status",)])
def test_a_command_as_a_copy_says_the_same(words: tuple[str, ...], place: Path) -> None:
    """On both outputs, with the same exit code."""
    environment = {**os.environ, "SPLITD_STATE": str(place / "s"), "SPLITD_ROOT": str(place / "r")}
    copy, execution = both([sys.executable, "-m", "deploy", *words], environment)
    assert vars(copy) == vars(execution)


def test_a_copy_is_ended_by_a_signal(place: Path) -> None:
    """It is awaited as a child, by several threads too, and its pid is its own."""
    program = place / "a_program.py"
    program.write_text("import pathlib, time\npathlib.Path(__file__).with_name('begun').touch()\ntime.sleep(60)\n")
    with open(os.devnull, "r+b") as nothing:
        copy = copies.start([sys.executable, str(program)], dict(os.environ), *3 * [nothing.fileno()])
    assert isinstance(copy, copies.Copy)
    eventually((place / "begun").exists, "it does not begin")
    assert copy.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        copy.wait(0.01)
    assert str(program) in Path(f"/proc/{copy.pid}/cmdline").read_text()
    codes: list[int] = []
    waiting = [threading.Thread(target=lambda: codes.append(copy.wait(60))) for _ in range(3)]
    for each in waiting:
        each.start()
    copy.terminate()
    for each in waiting:
        each.join()
    assert codes == [-signal.SIGTERM] * 3
    assert not Path(f"/proc/{copy.pid}").exists()
    copy.kill()


def test_a_program_that_takes_too_long_is_killed(place: Path) -> None:
    """The error has what it said."""
    program = place / "a_program.py"
    program.write_text(
        "import os, pathlib, time\nprint('so far', flush=True)\n"
        "pathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        copies.run([sys.executable, str(program)], dict(os.environ), 5)
    assert caught.value.output == b"so far\n"
    assert not Path("/proc", (place / "pid").read_text()).exists()


@pytest.mark.parametrize(
    "variables", [{"LC_ALL": "C"}, {"PYTHONMALLOC": "malloc"}, {**{f"X{number}": "x" * 30_000 for number in range(5)}}]
)
def test_a_program_is_executed_where_a_copy_would_not_be_the_same(variables: dict[str, str]) -> None:
    """Python has read the variable before it is anybody's copy; or there is too much to say."""
    with open(os.devnull, "r+b") as nothing:
        process = copies.start(
            [sys.executable, "-m", "deploy", "version"], {**os.environ, **variables}, *3 * [nothing.fileno()]
        )
    assert isinstance(process, subprocess.Popen)
    assert process.wait(60) == 0


def test_modules_that_read_the_environment_as_they_are_loaded_are_loaded_again() -> None:
    """All others read it when they need it, and so that of the copy."""
    found = set()
    for path in python_files():
        name = ".".join(path.relative_to(TOP).with_suffix("").parts)
        if "environ" in (source := path.read_text()) and any(map(reads, ast.parse(source).body)):
            found.add(name)
    assert {each for each in found if each.partition(".")[0] in copies.PACKAGES} == {*copies.AGAIN}


def reads(statement: ast.AST) -> bool:
    """Whether the environment is read here, but not in a function."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return False
    if isinstance(statement, ast.Attribute) and ast.unparse(statement) in ("os.environ", "os.getenv"):
        return True
    return any(map(reads, ast.iter_child_nodes(statement)))


def test_a_directory_of_another_test_is_not_known_to_a_copy() -> None:
    """Faults are those of its own environment, not of the first program's."""
    with short_directory() as faults:
        program = "from services.kit import faults; print(faults._DIRECTORY)"
        (faults / "p.py").write_text(program)
        for given in (str(faults), ""):
            done = copies.run([sys.executable, str(faults / "p.py")], {**os.environ, "SPLITD_FAULTS": given}, 60)
            assert done.stdout == f"{given}\n"
