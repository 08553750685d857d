"""Where a node lives: its root, its state directory, its configuration, and the paths that follow from them.

Each of the first two comes from the flag, else the environment (SPLITD_ROOT, SPLITD_STATE), else the configuration file, else the default. What a running node
was started with is kept in STATE/node.json, so that ``splitd logs --state DIR`` finds the logs without being told the root again.
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

from deploy.failure import Failure
from deploy.processes import SOCKETS
from services.kit import errors, heartbeat, settings

ETC = Path("/etc/splitd/config.toml")
"""Read where it exists, unless --config or SPLITD_CONFIG names another file."""

TOP = Path(__file__).resolve().parent.parent
"""The directory that holds the packages api, services, gateway and deploy: the working directory of every process."""


@dataclass(frozen=True, slots=True)
class Place:
    """One node of this machine."""

    root: Path
    state: Path
    config: Path | None

    @property
    def socket(self) -> Path:
        """The containerd API."""
        return self.state / "containerd.sock"

    @property
    def supervisor_socket(self) -> Path:
        return self.state / "supervisor.sock"

    @property
    def watchdog_socket(self) -> Path:
        """Where processes send their signs of life."""
        return self.state / heartbeat.SOCKET

    @property
    def supervisord_conf(self) -> Path:
        return self.state / "supervisord.conf"

    @property
    def lock(self) -> Path:
        """Locked by supervisord for as long as it lives, and by ``splitd up`` until then."""
        return self.state / "supervisord.lock"

    @property
    def logs(self) -> Path:
        """Below the root, since STATE is memory on most machines and gone after a reboot."""
        return self.root / "log"

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def remember(self) -> None:
        """Write what the node is started with, for later commands that are told only the state."""
        values = {"root": str(self.root), "config": str(self.config) if self.config else None}
        temporary = self.state / "node.json.new"
        temporary.write_text(json.dumps(values) + "\n")
        temporary.replace(self.state / "node.json")

    def hint(self, command: str) -> str:
        """A command line of splitd for this node, to be shown."""
        words = [*program(), *command.split()]
        if self.state != settings.STATE:
            words += ["--state", str(self.state)]
        return shlex.join(words)


def program() -> list[str]:
    """How this command is called here, to be shown in hints."""
    if shutil.which("splitd"):
        return ["splitd"]
    beside = Path(sys.executable).with_name("splitd")
    if not beside.exists():
        return [sys.executable, "-m", "deploy"]
    return [os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which node is meant; every verb has them."""
    parser.add_argument("--root", metavar="DIR", help="what survives a reboot (default: $SPLITD_ROOT, the configuration, /var/lib/splitd)")
    parser.add_argument("--state", metavar="DIR", help="sockets and what belongs to this boot (default: $SPLITD_STATE, the configuration, /run/splitd)")
    parser.add_argument("--config", metavar="FILE", help=f"the TOML file (default: $SPLITD_CONFIG, {ETC} if it exists)")


def config_file(arguments: argparse.Namespace) -> Path | None:
    """The configuration file to use, absolute; None for all defaults."""
    chosen = arguments.config or os.environ.get("SPLITD_CONFIG")
    if chosen:
        return _absolute(chosen)
    return ETC if ETC.exists() else None


def chosen(arguments: argparse.Namespace) -> dict[str, str]:
    """For root and state, where the operator says which, to be named when it cannot be that one."""
    file = config_file(arguments)
    written = settings.read(file).tables
    found = {}
    for what in ("root", "state"):
        if getattr(arguments, what):
            found[what] = f"--{what}"
        elif os.environ.get(f"SPLITD_{what.upper()}"):
            found[what] = f"SPLITD_{what.upper()}"
        else:
            found[what] = f"{what} in {file}, or --{what}" if what in written else f"--{what}"
    return found


def find(arguments: argparse.Namespace, *, remembered: bool = True) -> Place:
    """The node that the arguments and the environment mean; with ``remembered`` as it was started, where they do not say."""
    config = config_file(arguments)
    node = load_node(config)
    state = _absolute(arguments.state or os.environ.get("SPLITD_STATE") or node.state)
    root = arguments.root or os.environ.get("SPLITD_ROOT")
    if remembered and (known := recall(state)) is not None:
        return Place(_absolute(root) if root else known.root, state, config if arguments.config else known.config)
    return Place(_absolute(root or node.root), state, config)


def recall(state: Path) -> Place | None:
    """The node that was last started at ``state``, or None."""
    try:
        values = json.loads((state / "node.json").read_text())
        return Place(Path(values["root"]), state, Path(values["config"]) if values["config"] else None)
    except PermissionError:
        raise Failure(f"{state} is not readable: run this as root (sudo)") from None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never started, or before a crash of the machine: the arguments decide


def load_node(config: Path | None) -> settings.Node:
    """The top level of the configuration; a Failure that names the file, the table and the key if it is wrong."""
    try:
        node = settings.load(settings.Node, settings.read(config), "")
    except errors.NodeError as error:
        raise Failure(_without_suffix(error)) from None
    return node


def _without_suffix(error: errors.NodeError) -> str:
    return str(error).removesuffix(f": {error.suffix}")


def _absolute(path: str | Path) -> Path:
    return Path(os.path.normpath(Path.cwd() / path))


def check(place: Place) -> None:
    """Refuse paths that cannot work, each with its reason."""
    for what, path in (("root", place.root), ("state", place.state), ("configuration", place.config), ("installation", TOP)):
        # Spaces and percent signs are quoted; supervisord has no way to quote these.
        if path is not None and (bad := sorted({c for c in str(path) if c in "'\"\\;#" or not c.isprintable()})):
            raise Failure(f"the {what} path {str(path)!r} has {' '.join(map(repr, bad))} in it, which supervisord cannot take: choose another")
    longest = max(SOCKETS, key=len)
    length = len(os.fsencode(place.state / longest))
    if length > 107:
        raise Failure(f"the state directory {place.state} is {length - 107} bytes too long: socket paths end at 107 bytes, and {longest} must fit in it")
    if place.root == place.state:
        raise Failure(f"root and state are both {place.root}: choose two directories")
