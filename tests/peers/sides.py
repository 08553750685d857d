"""Two daemons that the same client asks the same: a node, and a containerd beside it. What they answer must not
differ.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.peer import containerd, program2
from tests.support import Node, eventually, short_directory

VARIES = [
    # of nerdctl, where a signal comes after the end
    (r'(time="[^"]*" )?level=error msg="forward signal child exited".*\n', ""),
    (r'time="[^"]*" ?', ""),  # of a line of a client's log
    (r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?([+-]\d\d:?\d\d|Z))?( UTC)?", "TIME"),
    (r"(?<!sha256:)\b[0-9a-f]{64}\b", "CONTAINER"),
    (r"\b(About a|Less than a|\d+) (second|minute)s?( ago)?", "A WHILE"),
    (r"\b\d+(\.\d+)?m?s\b", "A WHILE"),
]
"""What differs between two of the same runs on one daemon, and what stands for it."""
LABELS = re.compile(r"[\w./:-]+=[^,\s]*(?:,[\w./:-]+=[^,\s]*)+")
"""They come in any order."""


@dataclass(frozen=True, slots=True)
class Side:
    """A daemon, and a directory for what its client needs and makes."""

    name: str
    socket: Path
    directory: Path


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said, without what always varies."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Sides:
    """Runs a client on both. In its arguments {socket}, {dir} and {name} are those of the side.

    Containers of one name need namespaces of their own ("peers-{name}"): runc's cgroups are named by both, and the
    machine has them once.
    """

    ours: Side
    theirs: Side
    client: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def run(
        self, side: Side, *arguments: str, stdin: str | None = None, seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """The client on one side, whatever becomes of it."""

        def filled(word: str) -> str:
            return (
                word.replace("{socket}", str(side.socket))
                .replace("{dir}", str(side.directory))
                .replace("{name}", side.name)
            )

        return subprocess.run(
            [filled(word) for word in (*self.client, *arguments)],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env={**os.environ, **{name: filled(value) for name, value in self.env.items()}},
        )

    def __call__(
        self, *arguments: str, stdin: str | None = None, ok: bool | None = True, varies: Mapping[str, str] | None = None
    ) -> str:
        """Run it on both, which must answer the same and, as ``ok`` says, well or not (None: as that client has it);
        what it printed (for ``ok`` False: to stderr).

        ``varies``: patterns of what may differ here, and what is put in its place.
        """
        ours, theirs = (
            self.said(side, self.run(side, *arguments, stdin=stdin), varies or {}) for side in (self.ours, self.theirs)
        )
        what = " ".join(arguments)
        assert ours == theirs, f"{what}: {self.ours.name} said {ours}, {self.theirs.name} {theirs}"
        assert ok is None or (ours.code == 0) == ok, f"{what}: {ours}"
        return ours.err if ok is False else ours.out

    def settled(self, *arguments: str, until: str) -> None:
        """Until both say so, however long each takes."""
        for side in (self.ours, self.theirs):
            eventually(
                lambda side=side: until in self.run(side, *arguments).stdout,  # type: ignore[misc]
                f"{side.name} does not say {until}",
            )

    @staticmethod
    def said(side: Side, done: subprocess.CompletedProcess[str], varies: Mapping[str, str]) -> Said:
        def same(text: str) -> str:
            text = (
                text.replace(str(side.socket), "SOCKET")
                .replace(str(side.directory), "DIR")
                .replace(f"peers-{side.name}", "NAMESPACE")
            )
            for pattern, instead in [*varies.items(), *VARIES]:
                text = re.sub(pattern, instead, text)
            return LABELS.sub(lambda found: ",".join(sorted(found[0].split(","))), text)

        return Said(done.returncode, same(done.stdout), same(done.stderr))

    def files(self, name: str) -> tuple[Path, Path]:
        """A file that the client made in {dir}, of each side."""
        return self.ours.directory / name, self.theirs.directory / name


def a_containerd() -> str:
    """The containerd that is compared: a containerd 2 where there is one, else the machine's."""
    return program2("containerd") or "containerd"


@contextlib.contextmanager
def sides(*client: str, env: Mapping[str, str] | None = None) -> Iterator[Sides]:
    """Both, each with nothing in it; skipped where no containerd is installed."""
    with short_directory() as here, short_directory() as there:
        node = Node(here)
        try:
            node.up()
            with containerd(there, a_containerd()) as socket:
                ours, theirs = Side("splitd", node.socket, here / "c"), Side("containerd", socket, there / "c")
                for side in (ours, theirs):
                    side.directory.mkdir()
                yield Sides(ours, theirs, client, env or {})
        finally:
            node.clear()
