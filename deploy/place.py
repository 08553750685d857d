"""Where a node lives: its root, its state directory, its configuration, and the paths that follow from them.

Root and state directory come from the flag, else from the environment (SPLITD_ROOT, SPLITD_STATE), else from the
configuration file, else from the defaults. STATE/node.json has what a running node was started with;
:mod:`deploy.memory` has the same for the time after a reboot. So ``splitd logs --state DIR`` finds the logs, and
``splitd up --state DIR`` starts the same node, without root and configuration being named again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy import memory
from deploy.failure import Failure
from deploy.processes import SOCKETS
from services.kit import errors, heartbeat, settings

ETC = Path("/etc/splitd/config.toml")
"""Read if it exists, unless --config or SPLITD_CONFIG names another file."""

TOP = Path(__file__).resolve().parent.parent
"""The directory that holds the packages api, services, gateway and deploy. It is the working directory of every
process.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """One node of this machine."""

    root: Path
    state: Path
    config: Path | None

    @property
    def socket(self) -> Path:
        """The socket of the containerd API."""
        return self.state / "containerd.sock"

    @property
    def supervisor_socket(self) -> Path:
        return self.state / "supervisor.sock"

    @property
    def watchdog_socket(self) -> Path:
        """The socket to which processes send their beats."""
        return self.state / heartbeat.SOCKET

    @property
    def supervisord_conf(self) -> Path:
        return self.state / "supervisord.conf"

    @property
    def lock(self) -> Path:
        """Locked by supervisord while it lives, and by ``splitd up`` until supervisord is started."""
        return self.state / "supervisord.lock"

    @property
    def bundles(self) -> Path:
        """The tasks service's bundles: a directory for each namespace that has tasks, as in containerd."""
        return self.state / "io.containerd.runtime.v2.task"

    @property
    def logs(self) -> Path:
        """Below the root, since STATE is in memory on most machines and gone after a reboot."""
        return self.root / "log"

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def remember(self) -> None:
        """Write what the node is started with, for later commands that name only the state directory."""
        values = {"root": str(self.root), "config": str(self.config) if self.config else None}
        temporary = self.state / "node.json.new"
        temporary.write_text(json.dumps(values) + "\n")
        temporary.replace(self.state / "node.json")

    def hint(self, command: str) -> str:
        """A command line of splitd for this node, for messages."""
        words = [*program(), *command.split()]
        if self.state != settings.STATE:
            words += ["--state", str(self.state)]
        return shlex.join(words)


def program() -> list[str]:
    """How splitd is called on this machine, for hints in messages."""
    if shutil.which("splitd"):
        return ["splitd"]
    beside = Path(sys.executable).with_name("splitd")
    if not beside.exists():
        return [sys.executable, "-m", "deploy"]
    try:
        here = Path.cwd()
    except FileNotFoundError:  # a shell's directory may be removed below it
        return [str(beside)]
    return [os.path.relpath(beside) if beside.is_relative_to(here) else str(beside)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose the node; every verb has them."""
    parser.add_argument(
        "--root",
        metavar="DIR",
        help=(
            "where everything is that survives a reboot (default: $SPLITD_ROOT, the last root of this state directory, "
            "the "
            "configuration, /var/lib/splitd)"
        ),
    )
    parser.add_argument(
        "--state",
        metavar="DIR",
        help="where sockets and other files of this boot are (default: $SPLITD_STATE, the configuration, /run/splitd)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"the TOML file (default: $SPLITD_CONFIG, the last file of this state directory, {ETC} if it exists)",
    )


def config_file(arguments: argparse.Namespace) -> Path | None:
    """The configuration file to use if none is remembered, absolute; None for all defaults."""
    if (given := given_config(arguments)) is not None:
        return given
    return ETC if ETC.exists() else None


def given_config(arguments: argparse.Namespace) -> Path | None:
    """The configuration file that the operator names, absolute."""
    given = arguments.config or os.environ.get("SPLITD_CONFIG")
    return _absolute(given) if given else None


def given_root(arguments: argparse.Namespace) -> Path | None:
    """The root that the operator names outside of the configuration, absolute."""
    given = arguments.root or os.environ.get("SPLITD_ROOT")
    return _absolute(given) if given else None


def chosen(arguments: argparse.Namespace, here: Place) -> dict[str, str]:
    """Where the operator chose root and state of ``here``, for messages that refuse them."""
    written = settings.read(here.config).tables
    found = {}
    for what in ("root", "state"):
        if getattr(arguments, what):
            found[what] = f"--{what}"
        elif os.environ.get(f"SPLITD_{what.upper()}"):
            found[what] = f"SPLITD_{what.upper()}"
        else:
            found[what] = f"{what} in {here.config}, or --{what}" if what in written else f"--{what}"
    return found


def find(arguments: argparse.Namespace) -> Place:
    """The node that the arguments and the environment mean, as it runs or was last started. Its configuration is read
    only if that is needed, and may be wrong.
    """
    config = config_file(arguments)
    state = _state(arguments, config)
    root = given_root(arguments)
    if (known := recall(state)) is not None:
        return Place(root or known.root, state, known.config)
    return Place(root or load_node(config).root, state, config)


def to_start(arguments: argparse.Namespace) -> tuple[Place, memory.Remembered]:
    """The node that ``splitd up`` is to start, and what to remember of it. An option that the operator does not name
    is as it was the last time.
    """
    config, root = given_config(arguments), given_root(arguments)
    given = config is not None
    state = _state(arguments, config_file(arguments), broken_ok=False)
    known = last_started(state)
    if config is None and known is not None and known.config_given:
        config, given = known.config, True
    if not given:
        config = config_file(arguments)
    named = root is not None
    if root is None and known is not None and known.root_given:
        root, named = known.root, True
    root = root or load_node(config).root
    return Place(root, state, config), memory.Remembered(root, config, named, given)


def _state(arguments: argparse.Namespace, config: Path | None, *, broken_ok: bool = True) -> Path:
    """The state directory. If the file that names it is wrong, it is the one of the node that was started with that
    file.
    """
    if given := arguments.state or os.environ.get("SPLITD_STATE"):
        return _absolute(given)
    try:
        return _absolute(load_node(config).state)
    except Failure:
        known = memory.state_of(config) if config is not None and broken_ok else None
        if (
            known is None
            and broken_ok
            and config == ETC
            and given_config(arguments) is None
            and recall(settings.STATE) is not None
        ):
            known = settings.STATE  # started before the file existed
        if known is None:
            raise
        return known


def recall(state: Path) -> Place | None:
    """The node that was last started at ``state``, even before a reboot; None if none was."""
    try:
        values = json.loads((state / "node.json").read_text())
        return Place(Path(values["root"]), state, Path(values["config"]) if values["config"] else None)
    except PermissionError:
        raise Failure(f"{state} is not readable: run this as root (sudo)") from None
    except (OSError, ValueError, KeyError, TypeError):
        known = memory.of(state)  # STATE is of another boot
        return Place(known.root, state, known.config) if known is not None else None


def last_started(state: Path) -> memory.Remembered | None:
    """How the node at ``state`` was last started; None if none was. A release before 0.2 wrote this into STATE only,
    without what the operator had named.
    """
    if (known := memory.of(state)) is not None or (last := recall(state)) is None:
        return known
    try:
        named = load_node(last.config).root != last.root
    except Failure:
        named = True
    return memory.Remembered(last.root, last.config, named, last.config not in (None, ETC))


def load_node(config: Path | None) -> settings.Node:
    """The top level of the configuration. If it is wrong, a Failure names the file, the table and the key."""
    try:
        node = settings.load(settings.Node, settings.read(config), "")
    except errors.NodeError as error:
        raise Failure(_without_suffix(error)) from None
    return node


def _without_suffix(error: errors.NodeError) -> str:
    return str(error).removesuffix(f": {error.suffix}")


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))  # reads the current directory only if it is needed


def same(one: Path, other: Path) -> bool:
    """Whether two paths are the same directory, by whatever name."""
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def check(place: Place) -> None:
    """Refuse paths that cannot work, each with its reason."""
    for what, path in (
        ("root", place.root),
        ("state", place.state),
        ("configuration", place.config),
        ("installation", TOP),
    ):
        # Spaces and percent signs are quoted; supervisord has no way to quote these.
        if path is not None and (bad := sorted({c for c in str(path) if c in "'\"\\;#" or not c.isprintable()})):
            raise Failure(
                f"the {what} path {str(path)!r} has {' '.join(map(repr, bad))} in it, which supervisord cannot take: "
                "choose another"
            )
    longest = max(SOCKETS, key=len)
    length = len(os.fsencode(place.state / longest))
    if length > 107:
        raise Failure(
            f"the state directory {place.state} is {length - 107} bytes too long: socket paths end at 107 bytes, and "
            f"{longest} must fit in it"
        )
    if place.root == place.state:
        raise Failure(f"root and state are both {place.root}: choose two directories")
