"""Two daemons that get the same commands from the same client: a node, and a containerd. Their answers must not
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
"""Parts of outputs that differ between two equal runs on one daemon, and their replacements."""
LABELS = re.compile(r"[\w./:-]+=[^,\s]*(?:,[\w./:-]+=[^,\s]*)+")
"""Labels may come in any order."""


@dataclass(frozen=True, slots=True)
class Side:
    """A daemon, and a directory for its client."""

    name: str
    socket: Path
    directory: Path


@dataclass(frozen=True, slots=True)
class Said:
    """The output of a command, without the parts that always vary."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Sides:
    """Runs a client on both. In its arguments {socket}, {dir} and {name} are those of the side.

    Containers of one name need separate namespaces ("peers-{name}"): runc's cgroups are named by both, and exist once
    on the machine.
    """

    ours: Side
    theirs: Side
    client: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def run(
        self, side: Side, *arguments: str, stdin: str | None = None, seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the client on one side, with any outcome."""

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
        """Run it on both. They must give the same output, and succeed or fail as ``ok`` says (None: as that client
        does); return the output (for ``ok`` False: stderr).

        ``varies``: patterns of parts that may differ here, and their replacements.
        """
        ours, theirs = (
            self.said(side, self.run(side, *arguments, stdin=stdin), varies or {}) for side in (self.ours, self.theirs)
        )
        what = " ".join(arguments)
        assert ours == theirs, f"{what}: {self.ours.name} said {ours}, {self.theirs.name} {theirs}"
        assert ok is None or (ours.code == 0) == ok, f"{what}: {ours}"
        return ours.err if ok is False else ours.out

    def settled(self, *arguments: str, until: str) -> None:
        """Wait until both give this output, however long each takes."""
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
        """Return a file that the client made in {dir}, of each side."""
        return self.ours.directory / name, self.theirs.directory / name


def a_containerd() -> str:
    """The containerd for comparison: a containerd 2 if there is one, else the machine's."""
    return program2("containerd") or "containerd"


@contextlib.contextmanager
def sides(*client: str, env: Mapping[str, str] | None = None) -> Iterator[Sides]:
    """Both daemons, empty; skipped if no containerd is installed."""
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
