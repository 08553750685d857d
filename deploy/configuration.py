"""The configuration file as a whole: every table of every process, printed, checked and resolved.

A process reads only its own tables (services/kit/settings.py). This module knows all tables, from the table of
processes. If a config.py has a function ``load(file)``, that is called to load it, since it also reads keys of
containerd's own tables. If it has ``check(file)``, that checks what a single value does not show, such as other files.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from deploy.processes import ALL, Process
from services.etcd.config import EtcdConfig
from services.kit import errors, exporting, page_address, settings
from services.kit.config import load_metrics

ENTRIES = {"proxy_plugins": "gateway.config:ProxyPlugin", "services": "gateway.config:Service"}
"""Tables of named entries, such as ``[proxy_plugins.NAME]``, and the class of an entry."""
NESTED = frozenset({"services.sandbox", "services.snapshots"})
"""Entries that are tables of named entries themselves: ``[services.snapshots.NAME]``."""

QUIET = frozenset({"version"})
"""Keys of containerd's that have no meaning here, and need no warning."""


@dataclass(slots=True)
class Checked:
    """The findings about a file. ``errors`` keep a node from starting, ``troubles`` will make something fail later."""

    errors: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def tables() -> Iterator[tuple[str, type[Any]]]:
    """Each table with its dataclass; "" is the top level."""
    yield "", settings.Node
    yield "grpc", _class("services.kit.config:Config")
    yield "tracing", _class("services.kit.config:Tracing")
    yield "cgroup", _class("services.kit.config:Cgroup")
    yield "metrics", _class("services.kit.config:Metrics")
    yield "watchdog", _class("services.kit.config:Watchdog")
    for process in ALL:
        for table, where in process.config:
            yield table, _class(where)


def load(cls: type[Any], file: settings.File, table: str, **flags: Any) -> Any:
    """The settings of a table as its process reads them."""
    own = getattr(importlib.import_module(cls.__module__), "load", None)
    if own is None or cls.__name__ != "Config":
        return settings.load(cls, file, table, **flags)
    return own(file)


def of_process(process: Process, file: settings.File) -> Iterator[tuple[str, Any]]:
    """Each table that a process reads, with the settings in it."""
    for table, where in process.config:
        yield table, load(_class(where), file, table)


def _class(where: str) -> type[Any]:
    module, _, name = where.partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


class _Watched(dict[str, Any]):
    """One of containerd's tables. It notes which keys are looked up; the other keys have no meaning here."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def check(path: Path | None) -> Checked:
    """Check a file, and the node's environment variables OTEL_.... All findings are returned, not only the first."""
    found = Checked(troubles=list(exporting.check()))
    try:
        file = settings.read(path)
    except errors.NodeError as error:
        found.errors.append(_words(error))
        return found
    where = f"config file {file.path}:"
    known = {table.partition(".")[0] for table, _ in tables() if table and table not in settings.FOREIGN_TABLES} | set(
        ENTRIES
    )
    theirs: dict[str, _Watched] = {}
    readable: dict[str, Any] = {}
    for name, value in file.tables.items():
        is_table = isinstance(value, dict)
        if name in known and not is_table:
            found.errors.append(f"{where} {name} must be a table: [{name}]")
            continue
        if is_table and name not in known and name not in settings.FOREIGN_TABLES:
            found.errors.append(f"{where} unknown table [{name}] (known: {', '.join(sorted(known))})")
        elif is_table and name not in known:
            readable[name] = theirs[name] = _Watched(value)
            continue
        elif name in settings.FOREIGN_KEYS - QUIET - {f.name for f in dataclasses.fields(settings.Node)}:
            found.warnings.append(f"{where} {name} is containerd's and means nothing here")
        readable[name] = value
    file = settings.File(file.path, readable)
    for table, cls in tables():
        _try(found, cls, file, table)
    for name, entry in ENTRIES.items():
        for table in _entries(file, name):
            _try(found, _class(entry), file, table)
    if not found.errors:
        _look(found, file)
    for name, values in theirs.items():
        if not values.asked & set(values):
            found.warnings.append(f"{where} [{name}] is containerd's and means nothing here")
        else:
            found.warnings += [
                f'{where} [{name}] "{key}" is containerd\'s and means nothing here'
                for key, value in values.items()
                if value and key not in values.asked
            ]
    return found


def _entries(file: settings.File, name: str) -> Iterator[str]:
    """The tables of the entries of ``name``."""
    for key, value in file.tables.get(name, {}).items():
        table = f"{name}.{key}"
        if table in NESTED and isinstance(value, dict):
            yield from (f"{table}.{inner}" for inner in value)
        else:
            yield table


def _try(found: Checked, cls: type[Any], file: settings.File, table: str) -> None:
    try:
        load(cls, file, table)
    except errors.NodeError as error:
        found.errors.append(_words(error))


def _look(found: Checked, file: settings.File) -> None:
    """Call the ``check`` of each process's settings, for a file that can be loaded."""
    lists = {"error": found.errors, "trouble": found.troubles, "warning": found.warnings}
    found.troubles += _overlapping(file)
    for table, cls in tables():
        found.troubles += [f"config file {file.path}: {each}" for each in etcd_troubles(table, load(cls, file, table))]
    for module in dict.fromkeys(cls.__module__ for _, cls in tables()):
        for kind, words in getattr(importlib.import_module(module), "check", lambda _: ())(file):
            lists[kind].append(words)


def etcd_troubles(table: str, value: Any) -> Iterator[str]:
    """The files that cannot be used, of each etcd cluster that the settings ``value`` of ``table`` name."""
    for name, config in etcds(table, value):
        from services.etcd import checked  # which loads TLS

        yield from (f"[{name}] {words}" for words in checked.troubles(config))


def etcds(table: str, value: Any) -> Iterator[tuple[str, EtcdConfig]]:
    """The etcd clusters that the settings ``value`` of ``table`` name, each with its own table."""
    if isinstance(value, EtcdConfig):
        if value.endpoints:
            yield table, value
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from etcds(f"{table}.{each.name}".lstrip("."), getattr(value, each.name))


def _overlapping(file: settings.File) -> Iterator[str]:
    """The addresses of pages that exclude each other."""
    served = {
        "traces": load(_class("services.traces.config:Config"), file, "traces").address,
        "metrics": load_metrics(file).address,
        "health": load(_class("gateway.config:Health"), file, "health").address,
    }
    found = [(f"[{table}] address", address) for table, address in served.items() if address]
    fleet = load(_class("services.fleet.config:Config"), file, "fleet")
    if fleet.etcd.endpoints and fleet.advertised:
        found.append(("[fleet] listen", fleet.listen))
    if len(found) < 2:
        return
    for (one, first), (other, second) in itertools.combinations(found, 2):
        if page_address.overlap(first, second):
            yield (
                f"config file {file.path}: {one} {first!r} and {other} {second!r} are one place: only one of "
                "them can be served"
            )


def _words(error: errors.NodeError) -> str:
    return str(error).removesuffix(f": {error.suffix}")


def grace(process: Process, file: settings.File) -> float:
    """Seconds that a process gives its calls to end when it is stopped; 0 if its settings do not say."""
    return max(
        (float(getattr(load(_class(where), file, table), "grace", 0.0)) for table, where in process.config), default=0.0
    )


def text(file: settings.File, *, comments: bool, files: Mapping[str, settings.File] | None = None, **top: Path) -> str:
    """The effective configuration of ``file``, as TOML. ``files`` are other files for single tables. ``top`` overrides
    keys of the top level. With ``comments`` each key is explained.
    """
    parts = []
    for table, cls in tables():
        value = load(cls, (files or {}).get(table, file), table, **(top if not table else {}))
        parts.append(_table(table, value, comments=comments))
    for name, where in ENTRIES.items():
        cls = _class(where)
        entries = list(_entries(file, name))
        parts += [_table(table, load(cls, file, table), comments=comments) for table in entries]
        if comments and not entries:
            keys = "".join(f"\n{_comment(docs)}# {key} = ..." for key, docs in _docs(cls).items())
            parts.append(f"{_comment(inspect.getdoc(cls) or '')}# [{name}.NAME]{keys}\n")
    return "\n".join(parts)


def _table(table: str, value: Any, *, comments: bool) -> str:
    """One table, followed by its nested tables."""
    lines = [_comment(inspect.getdoc(type(value)) or "")] if comments else []
    if table:
        lines.append(f"[{table}]\n")
    docs = _docs(type(value)) if comments else {}
    hints = get_type_hints(type(value), include_extras=True)
    nested = []
    for each in dataclasses.fields(value):
        inner = getattr(value, each.name)
        name = _key(each.name)
        if dataclasses.is_dataclass(inner):
            nested.append((f"{table}.{name}" if table else name, inner))
            continue
        lines.append(_comment(docs.get(each.name, "")))
        if inner and not each.repr:
            lines.append(f"# {name} is set, and not shown\n")
            continue
        lines.append(f"# {name} is not set\n" if inner is None else f"{name} = {literal(inner, hints[each.name])}\n")
    return "".join(lines) + "".join("\n" + _table(name, inner, comments=comments) for name, inner in nested)


def literal(value: Any, hint: Any = None) -> str:
    """A value as TOML."""
    if hint == settings.Seconds and isinstance(value, (int, float)):
        return f'"{settings.format_duration(value)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(literal(v) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(k)} = {literal(v)}' for k, v in value.items())}}}" if value else "{}"
    if dataclasses.is_dataclass(value):
        hints = get_type_hints(type(value), include_extras=True)
        fields = (
            f"{_key(f.name)} = {literal(getattr(value, f.name), hints[f.name])}"
            for f in dataclasses.fields(value)
            if f.repr
        )
        return f"{{{', '.join(fields)}}}"
    return str(value)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _comment(docs: str) -> str:
    """Prose as TOML comment lines, without quotes of reStructuredText."""
    return "".join(f"# {line}".rstrip() + "\n" for line in docs.replace("``", "").strip().splitlines())


def _docs(cls: type[Any]) -> dict[str, str]:
    """The docstring below each field of a dataclass, including inherited fields."""
    found: dict[str, str] = {f.name: "" for f in dataclasses.fields(cls)}
    for each in reversed(cls.__mro__[:-1]):
        try:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        except OSError:  # made by make_dataclass, from classes that are in the source
            continue
        assert isinstance(node, ast.ClassDef)
        for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                found[statement.target.id] = inspect.cleandoc(after.value.value)
    return found
