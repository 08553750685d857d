"""Begins a service of somebody's own: a folder with a program that works at once, a copy of one of examples/; a test
that runs the interface's rules on it; and what keeps it running. Nothing that exists is overwritten.

The programs' first line names the Python that has splitd, so that they can be started by their path.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import site
import string
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy import place
from deploy.failure import Failure
from services.kit import settings

TEMPLATES = Path(__file__).parent / "templates"
EXAMPLES = place.TOP / "examples"

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 32
"""Characters of a name: it is part of the path of a socket, which is short."""
_PLAIN = re.compile(r"[\w./=+-]+")
"""A word of a first line that needs no quotes."""
_SHEBANG = 255
"""Bytes of a first line that the kernel reads."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of service that can be begun."""

    example: str
    words: str
    type: str
    """As containerd's [proxy_plugins] and splitd conform call it."""
    route: str
    """A route whose place it can take."""
    thing: str
    """What a share of goes to it."""


KINDS = {
    "snapshotter": Kind("overlay.py", "snapshotter", "snapshot", "snapshots.overlayfs", "snapshot without a parent"),
    "content": Kind("blobs.py", "content store", "content", "content", "ingest"),
}


def begin(kind: str, name: str, directory: Path) -> list[Path]:
    """Write the files of a service called ``name`` into ``directory``, which is made if necessary. Returns them, the
    program first. Failure, and nothing is written, if the name cannot be used or one of the files exists.
    """
    directory = directory.absolute()
    program = f"{module_of(name)}.py"
    found = _files(KINDS[kind], name, program, directory)
    for file in found:
        if os.path.lexists(directory / file):
            raise Failure(f"{directory / file} exists, and nothing is overwritten: choose another name or directory")
    directory.mkdir(parents=True, exist_ok=True)
    for file, text in found.items():
        mode = 0o755 if file.endswith(".py") else 0o644
        with open(os.open(directory / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as new:
            new.write(text)
    return [directory / file for file in found]


def module_of(name: str) -> str:
    """The name of the Python file of a service; Failure if ``name`` cannot be one."""
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        raise Failure(
            f"{name!r} is no name for a service: at most {LONGEST} lower case letters, digits and single dashes, a "
            "letter first",
            2,
        )
    module = name.replace("-", "_")
    if module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None:
        raise Failure(f"Python has a module {module!r}, which {module}.py would hide: choose another name", 2)
    return module


def _files(kind: Kind, name: str, program: str, directory: Path) -> dict[str, str]:
    test = f"test_{program}"
    shebang = _shebang()
    words = {
        "name": name,
        "kind": kind.words,
        "type": kind.type,
        "route": kind.route,
        "thing": kind.thing,
        "program": program,
        "test": test,
        "command": shlex.quote(str(directory / program)).replace("%", "%%"),
        "state": str(settings.STATE),
        "shebang": shebang,
        "splitd": " ".join(place.program()),
        "conform": json.dumps([*_command(), "conform"]),
    }

    def filled(template: str) -> str:
        return string.Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(words)

    return {
        program: f"{shebang}\n{(EXAMPLES / kind.example).read_text(encoding='utf-8')}",
        test: filled("test.py.in"),
        f"{name}.conf": filled("supervisord.conf.in"),
        "README.md": filled("README.md.in"),
    }


def _shebang() -> str:
    """The first line of a program: it starts this Python with splitd importable. Failure if the kernel would cut it."""
    words = _interpreter()
    line = f"#!{words[0]}"
    if len(words) > 1 or not _PLAIN.fullmatch(words[0]):
        line = "#!/usr/bin/env -S " + " ".join(word if _PLAIN.fullmatch(word) else f'"{word}"' for word in words)
    if len(os.fsencode(line)) > _SHEBANG or any(c in line for c in "\\$\n") or line.count('"') % 2:
        raise Failure(f"{sys.executable} has a path that a program's first line cannot name")
    return line


def _interpreter() -> list[str]:
    """The path of this Python, if splitd is installed in it; in a clone the folder has to be named first."""
    if str(place.TOP) in map(os.path.realpath, site.getsitepackages()):
        return [sys.executable]
    return [f"PYTHONPATH={place.TOP}", sys.executable]


def _command() -> list[str]:
    """The command splitd by its path, for programs that are started without a PATH."""
    beside = Path(sys.executable).with_name("splitd")
    return [str(beside)] if beside.exists() else ["/usr/bin/env", *_interpreter(), "-m", "deploy"]
