"""The version of this splitd, and of the containerd that it speaks as. Nothing else defines these.

Clients read the server's version as containerd's, and decide by it what they may call (nerdctl, for one). So it begins
with the containerd release whose behaviour is our specification. splitd's own version is behind the plus, as semver's
build metadata.

A *revision* names the exact code: ``COMMIT.CODE``, twelve digits of git's commit and eight of a digest of the files,
since those may differ from the commit. A process notes its own revision when it starts; the installed one may differ
later.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

SPLITD = "0.2.0"
CONTAINERD = "2.4.0"
VERSION = f"{CONTAINERD}+splitd.{SPLITD}"
"""The answer of the Version service: ``2.4.0+splitd.0.2.0``."""

PACKAGE = "splitd"

_TOP = Path(__file__).resolve().parents[2]
_CODE = ("api", "client", "deploy", "gateway", "services")
_SUPERVISORS = ("deploy/inside", "services/kit/heartbeat.py")
"""Our code that runs inside supervisord."""

ARCHIVED = "$Format:%H$"
"""The commit, which ``git archive`` fills in (.gitattributes), since an unpacked archive has no .git."""


@functools.cache
def revision() -> str:
    """The revision of this process, as of the first call, which ``process.run`` makes before anything else."""
    return installed()


def installed() -> str:
    """The revision that is installed now; only the digest if the commit is not known."""
    named, code = commit(_TOP), digest(_TOP, _CODE)
    return f"{named[:12]}.{code}" if named else code


def supervisors() -> str:
    """A digest of our code for supervisord, as it is installed now."""
    return digest(_TOP, _SUPERVISORS)


def digest(top: Path, names: tuple[str, ...]) -> str:
    """Eight hexadecimal digits for the Python files in (or called) ``names`` below ``top``: their names and
    contents.
    """
    total = hashlib.sha256()
    for path in (path for name in names for path in _files(f"{top}/{name}")):
        # pathlib takes twice as long, and each start of a service waits for this
        with open(path, "rb", buffering=0) as file:
            text = file.readall()
        total.update(f"{path.removeprefix(str(top))}\0{len(text)}\0".encode())
        total.update(text)
    return total.hexdigest()[:8]


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
    for directory, directories, files in os.walk(path):
        directories.sort()
        yield from (f"{directory}/{file}" for file in sorted(files) if file.endswith(".py"))


def commit(top: Path, archived: str = ARCHIVED) -> str:
    """The commit that is checked out at ``top``, or that it was ``archived`` from; "" if neither is known. This reads
    the files of .git, since git may not be installed, and refuses checkouts of other users.
    """
    if not archived.startswith("$"):
        return archived
    try:
        git = top / ".git"
        if git.is_file():  # a worktree: "gitdir: DIR", a directory that names what it shares with the others
            git = top / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return _commit(head)
        shared = git / "commondir"
        return _of_ref(git / shared.read_text().strip() if shared.exists() else git, head.removeprefix("ref: "))
    except OSError:
        return ""


def _of_ref(git: Path, ref: str) -> str:
    try:
        return _commit((git / ref).read_text().strip())
    except FileNotFoundError:
        packed = (line.split() for line in (git / "packed-refs").read_text().splitlines())
        return next((_commit(words[0]) for words in packed if words[1:] == [ref]), "")


def _commit(text: str) -> str:
    return text if re.fullmatch("[0-9a-f]{40,64}", text) else ""
