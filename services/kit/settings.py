"""One TOML file configures the node; each process reads the top level and its own table.

A settings class is a frozen dataclass. Its fields are the keys, its defaults are the defaults, and ``splitd config
default`` prints its docstring above the table. Durations are written as in containerd (``"100ms"``, ``"5s"``,
``"1m30s"``), and read as seconds; such a field is annotated :data:`Seconds`. An unknown key of ours is an error that
names file, table and key. A key of containerd's that has no meaning here is a warning.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from services.kit import errors

C = TypeVar("C")
Seconds = Annotated[float, "duration"]

ROOT = Path("/var/lib/splitd")
STATE = Path("/run/splitd")


@dataclass(frozen=True, slots=True)
class Node:
    """The top level: where this node lives. Two nodes on one machine differ in root and state."""

    root: Path = ROOT
    """The directory of everything that survives a reboot, and of the logs."""
    state: Path = STATE
    """The directory of sockets and other files of the current boot."""
    oom_score: int = 0
    """The oom_score_adj of the node's processes, from -1000 to 1000; 0: as they are started."""

    def __post_init__(self) -> None:
        if not -1000 <= self.oom_score <= 1000:
            raise ValueError(f"oom_score: {self.oom_score} is not between -1000 and 1000")


FOREIGN_KEYS = frozenset(
    {"version", "imports", "temp", "disabled_plugins", "required_plugins", "plugin_dir", "oom_score"}
)
FOREIGN_TABLES = frozenset({"grpc", "ttrpc", "debug", "plugins", "proxy_plugins", "stream_processors", "timeouts"})
"""Keys and tables of containerd's config.toml that are not ours. They are accepted, and a warning names those that have
no meaning here.
"""

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


_LONGEST = 2**63 / 1e9
"""Seconds of the longest duration that Go has: its nanoseconds have 64 bits."""


def parse_duration(text: str) -> float:
    """The seconds of a Go duration such as ``1m30s`` or ``100ms``; ValueError if it is none."""
    if text == "0":
        return 0.0
    parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(f"{text[:100]!r} is not a duration such as 100ms, 5s or 1m30s")
    seconds = sum(float(n) * _UNITS[u] for n, u in parts)
    if seconds > _LONGEST:
        raise ValueError(f"{text[:100]!r} is more than the longest duration, {_LONGEST / 3600:.0f}h")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest Go duration for ``seconds``: ``100ms`` for 0.1, ``1m30s`` for 90."""
    if seconds and seconds < 1:
        return f"{seconds * 1000:g}ms"
    whole = int(seconds)
    text = "".join(f"{n}{u}" for n, u in ((whole // 3600, "h"), (whole % 3600 // 60, "m")) if n)
    rest = seconds - whole + whole % 60
    return text + (f"{rest:g}s" if rest or not text else "")


@dataclass(frozen=True, slots=True)
class File:
    """A parsed configuration file. Messages name ``path``; ``tables`` has the contents."""

    path: str = "the defaults"
    tables: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    """The text that was parsed; empty without a file."""


RUNNING = "config"
"""A directory in STATE, with a file for each process: the configuration that it uses."""


def keep(file: File, state: Path, name: str) -> None:
    """Store ``file`` as the configuration of the process ``name``, readable by its owner only, since it may have
    secrets. Raises OSError, as on a full disk.
    """
    directory = state / RUNNING
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = directory / f"{name}.new"
    temporary.write_text(file.text)
    temporary.replace(directory / f"{name}.toml")


def read(path: Path | None) -> File:
    """Parse ``path``. InvalidArgument if the file is missing or malformed. None means no file: all defaults."""
    if path is None:
        return File()
    try:
        text = path.read_text()
        return File(str(path), tomllib.loads(text), text)
    except OSError as error:
        raise errors.InvalidArgument(f"config file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise errors.InvalidArgument(f"config file {path}: {error}") from None
    except RecursionError:
        raise errors.InvalidArgument(f"config file {path}: it is nested too deeply") from None


def load(cls: type[C], file: File, table: str, **flags: Any) -> C:
    """An instance of ``cls``: its defaults, overridden by ``[table]`` of ``file`` (dots for sub-tables; "" for the top
    level), overridden by ``flags`` that are not None.
    """
    values: Any = file.tables
    for part in table.split(".") if table else ():
        values = values.get(part, {})
        if not isinstance(values, dict):
            raise errors.InvalidArgument(f"config file {file.path}: {table} is not a table")
    hints = get_type_hints(cls, include_extras=True)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        if key in known:
            chosen[key] = _convert(value, hints[key], f"config file {file.path}: {_where(table, key)}")
        elif table or (not isinstance(value, dict) and key not in FOREIGN_KEYS):
            raise errors.InvalidArgument(
                f"config file {file.path}: unknown key {_where(table, key)} (known: {', '.join(sorted(known))})"
            )
    chosen.update({k: v for k, v in flags.items() if v is not None})
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if f.name not in chosen and f.default is f.default_factory is dataclasses.MISSING:
            raise errors.InvalidArgument(f"config file {file.path}: {_where(table, f.name)} is missing")
    try:
        return cls(**chosen)
    except ValueError as error:  # from the class's own checks, whose messages begin with the key
        raise errors.InvalidArgument(f"config file {file.path}: {_where(table, str(error))}") from None


def plugin(file: File, name: str) -> Mapping[str, Any]:
    """The table [plugins."NAME"], which is containerd's; empty if there is none."""
    plugins = file.tables.get("plugins", {})
    if not isinstance(plugins, dict):
        raise errors.InvalidArgument(f"config file {file.path}: plugins is not a table")
    table = plugins.get(name, {})
    if not isinstance(table, dict):
        raise errors.InvalidArgument(f'config file {file.path}: [plugins."{name}"] is not a table')
    return table


def load_plugin(cls: type[C], file: File, name: str) -> tuple[C, frozenset[str]]:
    """An instance of ``cls`` from containerd's table [plugins."NAME"], and the set of its fields that the table has. As
    in containerd, keys that ``cls`` does not have are ignored.
    """
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    table = {key: value for key, value in plugin(file, name).items() if key in known}
    try:
        return load(cls, File(file.path, {"plugin": table}), "plugin"), frozenset(table)
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument(str(error).replace(": [plugin] ", f': [plugins."{name}"] ', 1)) from None


def _where(table: str, key: str) -> str:
    return f"[{table}] {key}" if table else key


def _convert(value: Any, hint: Any, where: str) -> Any:
    try:
        return _as(value, hint)
    except (TypeError, ValueError) as error:
        raise errors.InvalidArgument(f"{where}: {error}") from None


def _as(value: Any, hint: Any) -> Any:
    if hint == Seconds:
        if isinstance(value, str):
            return parse_duration(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0:
            return 0.0
        raise TypeError(f'{value!r} is not a duration such as "100ms"')
    if hint is Path:
        if not isinstance(value, str) or not value.startswith("/"):
            raise TypeError(f"{value!r} is not an absolute path")
        return Path(value)
    origin = get_origin(hint)
    if origin is typing.Literal:
        if value not in get_args(hint):
            raise ValueError(f"{value!r} is none of {', '.join(map(repr, get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{value!r} is not a list")
        return tuple(_as(v, get_args(hint)[0]) for v in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{value!r} is not a table")
        return {k: _as(v, get_args(hint)[1]) for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise TypeError(f"{value!r} is not a table")
        hints = get_type_hints(hint, include_extras=True)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise ValueError(f"unknown key {unknown[0]} (known: {', '.join(sorted(hints))})")
        return hint(**{k: _as(v, hints[k]) for k, v in value.items()})
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise TypeError(f"{value!r} is not {_NAMES.get(hint, hint)}")
    return value


_NAMES = {int: "a whole number", str: "a string", bool: "true or false", float: "a number"}
