"""No file imports itself, by however many others: each can be read and tested with knowledge of only those below it. No
file is too long to be read in one go.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]
CODE = ("services", "gateway", "deploy", "client", "conform", "splitd", "bench")
LINES = 650

TYPING_ONLY = {
    # What is made here and what is made of it: the calls of a connection, a relay's upstream. Only their types know
    # each other.
    ("services.kit.grpcio", "services.kit.channel"),
    ("services.kit.relays", "services.kit.channel"),
    ("services.wire.client_call", "services.wire.channel"),
    ("services.wire.relay", "services.wire.server"),
    ("services.wire.relay_messages", "services.wire.server"),
    ("services.wire.server_call", "services.wire.server"),
}
"""Imports under ``if TYPE_CHECKING`` that would close a cycle if they were real: importer and imported."""

Graph = Mapping[str, AbstractSet[str]]


def files() -> dict[str, Path]:
    """The modules of production by name; a package's is its ``__init__.py``."""
    found = {}
    for path in sorted(path for folder in CODE for path in (TOP / folder).rglob("*.py")):
        parts = path.relative_to(TOP).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.Module, modules: Collection[str]) -> tuple[set[str], set[str]]:
    """Return the ``modules`` that a file imports, anywhere in it, and those that it imports for type checking only.
    ``from a import b`` imports ``a.b`` if that is a module, else ``a``.
    """
    made: set[str] = set()
    for_types: set[str] = set()
    waiting: list[tuple[ast.AST, set[str]]] = [(statement, made) for statement in tree.body]
    while waiting:
        node, found = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            found |= {name if (name := f"{package}.{alias.name}") in modules else package for alias in node.names}
        else:
            inner = (
                for_types
                if isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"
                else found
            )
            waiting += [
                (statement, inner)
                for statement in (
                    *getattr(node, "body", ()),
                    *getattr(node, "handlers", ()),
                    *getattr(node, "cases", ()),
                )
            ]
            waiting += [
                (statement, found) for statement in (*getattr(node, "orelse", ()), *getattr(node, "finalbody", ()))
            ]
    return made & set(modules), for_types & set(modules)


@functools.cache
def graphs() -> tuple[Graph, Graph]:
    """Return the graph of imports, and that of imports for type checking only."""
    modules = files()
    found = {name: imports(ast.parse(path.read_bytes()), modules.keys()) for name, path in modules.items()}
    return {name: made for name, (made, _) in found.items()}, {
        name: for_types for name, (_, for_types) in found.items()
    }


def reached(edges: Graph, start: str) -> set[str]:
    """Return all modules that ``start`` imports, by however many others."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in edges[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def circles(edges: Graph) -> list[list[str]]:
    """Return the modules of each cycle."""
    reach = {name: reached(edges, name) for name in edges}
    found = {frozenset(other for other in reach[name] if name in reach[other]) for name in edges if name in reach[name]}
    return sorted(sorted(circle) for circle in found)


def test_there_is_no_circle_of_files() -> None:
    """Imports inside functions count as the others do."""
    made, _ = graphs()
    assert circles(made) == []


def test_circles_of_types_are_listed() -> None:
    """A cycle that is closed by types only costs a reader less, but there should be few."""
    made, for_types = graphs()
    both = {name: made[name] | for_types[name] for name in made}
    found = {
        (name, other)
        for name in both
        for other in for_types[name] - made[name]
        if name in reached(both, other) | {other}
    }
    assert found == TYPING_ONLY


def test_the_test_would_see_a_circle() -> None:
    """A cycle of two, one of three with an import inside a function; not one of types."""
    assert circles({"a": frozenset("b"), "b": frozenset("a"), "c": frozenset("a")}) == [["a", "b"]]
    assert circles({"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a")}) == [["a", "b", "c"]]
    tree = ast.parse(
        "import a\nif TYPE_CHECKING:\n    from b import c\nelse:\n    import d\ndef f():\n    try:\n        pass\n    "
        "except OSError:\n        from e import g\n"
    )
    assert imports(tree, {"a", "b", "d", "e.g", "e"}) == ({"a", "d", "e.g"}, {"b"})


def test_no_file_is_too_long() -> None:
    """A reader should see at once what a file does; generated ones (api/) are not read."""
    lengths = {path.relative_to(TOP).as_posix(): len(path.read_text().splitlines()) for path in files().values()}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}
