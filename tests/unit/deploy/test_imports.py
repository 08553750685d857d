"""Allowed imports: the walls between domain, wire and kit, on which the design rests."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
CODE = ("services", "gateway", "deploy", "client", "conform", "splitd")

ALLOWED = {
    # What only the kit knows: grpcio is the second transport, spans are sent as OpenTelemetry's. The traces service takes
    # such spans in.
    "grpc": ["services/kit/grpcio.py"],
    "opentelemetry": ["services/kit/otlp*.py", "services/kit/resource.py"],
    # Protobuf stops at the wire; the domain (store.py, local.py and what they are made of) never sees it.
    "_pb2": [
        "services/kit/*.py",
        "services/wire/*.py",
        "services/*/server.py",
        "services/*/remote.py",
        "services/*/convert.py",
        "services/*/*_server.py",
        "services/*/*_remote.py",
        "services/*/*_convert.py",
        "services/etcd/protocol.py",  # the messages and services of etcd, made of etcd3's descriptors
        "services/metadata/backends.py",  # the wire to raw services, through the gateway
        "services/snapshots/diff/server.py",
        "services/tasks/gateway.py",  # the wire to containers' records, through the gateway
        "services/tasks/options.py",  # runc's options, which clients send as they are
        "services/tasks/shim.py",  # the wire to a shim
        "gateway/containers.py",  # which container a call of tasks is about
        "gateway/sandboxes.py",  # which sandbox a call of a controller is about
        "gateway/content.py",  # servicers: clients' messages and the raw services', of containerd's API
        "gateway/writes.py",
        "gateway/snapshots.py",
        "gateway/localfiles.py",
        "gateway/events.py",
        "gateway/introspection.py",
        "gateway/routes.py",  # by their descriptors the services are known
        "gateway/remote.py",
        "gateway/shown_messages.py",
        "gateway/*_server.py",
        "gateway/convert.py",
        "gateway/*_server.py",
        "gateway/*_convert.py",
        "gateway/shadows.py",
        "gateway/strangers.py",  # hands messages on to the process that compares them
        "client/*_remote.py",
        "conform/*_remote.py",
        "deploy/health.py",
        "deploy/containers.py",
    ],
    # One life of metadata's store is SQLite, and nothing above its interface may know; a snapshotter's tree is kept in
    # a file of it, and traces are.
    "sqlite3": [
        "services/kit/sqlite.py",
        "services/metadata/sqlite.py",
        "services/metadata/sqlite_rows.py",
        "services/metadata/etcd.py",
        "services/metadata/etcd_mirror.py",  # whose mirror it is
        "services/metadata/etcd_later.py",  # what that notes
        "services/metadata/deletes.py",
        "services/metadata/freeing.py",
        "services/kit/damage.py",
        "services/kit/salvage.py",
        "services/snapshots/records.py",
        "services/snapshots/tree.py",
        "services/traces/local.py",
    ],
    # The gateway alone makes the page of metrics; the others count with services/kit/metrics.py.
    "prometheus_client": ["gateway/metrics.py"],
    # HTTP: one module makes requests, one times them; the rest of the registry client sees their answers.
    "aiohttp": [
        "services/images/registry/transport.py",
        "services/images/registry/trace.py",
        "services/images/registry/response_parser.py",
    ],
    "yarl": ["services/images/registry/transport.py"],
    # supervisord is started as a program, and loads what is in deploy/inside.
    "supervisor": ["deploy/inside/*.py"],
}
"""The first part of a module's name (or the ending of generated modules), and the files that may import it."""


def python_files() -> list[Path]:
    return sorted(path for folder in CODE for path in (TOP / folder).rglob("*.py"))


@functools.cache
def imports(path: Path) -> list[str]:
    """Return the full names of the modules that a file imports, anywhere in it; of ``from a import b`` both ``a`` and
    ``a.b``.
    """
    return list(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_of(module: str, kind: str) -> bool:
    if kind == "_pb2":
        return module.endswith(("_pb2", "_stubs")) or module.startswith("google.protobuf.message")
    return module.split(".", 1)[0] == kind


@pytest.mark.parametrize("kind", ALLOWED)
def test_only_the_files_listed_import_it(kind: str) -> None:
    """grpc, opentelemetry, protobuf and SQL each stay behind their walls."""
    found = {path.relative_to(TOP).as_posix() for path in python_files() if any(is_of(m, kind) for m in imports(path))}
    strays = {path for path in found if not any(fnmatch(path, pattern) for pattern in ALLOWED[kind])}
    assert not strays, f"{kind} is imported outside {ALLOWED[kind]}: {sorted(strays)}"


KIT_OF_CALLS = {
    f"services.kit.{name}"
    for name in ("rpc", "call", "relays", "transport", "around", "chosen", "channel", "shielding")
}


def test_calls_have_one_face() -> None:
    """Outside of the kit and its wire, only services.kit.rpc is used for them."""
    behind = KIT_OF_CALLS - {"services.kit.rpc"}
    strays = [
        f"{path.relative_to(TOP)} imports {module}"
        for path in python_files()
        if path.relative_to(TOP).parts[1] not in ("kit", "wire")
        for module in imports(path)
        if module in behind
    ]
    assert not strays


def test_calls_are_heard_of_in_one_place() -> None:
    """Code that carries calls reports to services.kit.observer, and knows none of the listeners."""
    carriers = [
        *(TOP / "services/wire").glob("*.py"),
        *(TOP / "services/kit" / f"{name}.py" for name in ("transport", "channel", "grpcio", "many", "ttrpc")),
    ]
    assert not [path.name for path in carriers if "services.kit.tracing" in imports(path)]


def test_a_store_module_imports_no_other_life_and_no_wire() -> None:
    """Imports point to store.py, and never back."""
    strays = []
    for path in [*sorted((TOP / "services").glob("*/store.py")), TOP / "gateway" / "store.py"]:
        here = ".".join(path.relative_to(TOP).parent.parts)
        backward = {
            f"{here}.{name}" for name in ("local", "memory", "server", "remote", "convert", "config", "__main__")
        }
        strays += [
            f"{path.relative_to(TOP)} imports {module}"
            for module in imports(path)
            if module in backward
            or (module in KIT_OF_CALLS and here != "gateway")  # which acts as its callers, so it knows calls
        ]
    assert not strays


WORKERS = ("images", "services.snapshots.diff")
"""Programs that any process may start: the images service unpacks layers with the program of Diff."""


def test_services_know_each_other_only_by_interface() -> None:
    """A service imports of another only its store (the interface) or its remotes (the wire), never the code of the
    other's process. Libraries are no services.
    """
    strays = []
    for path in sorted((TOP / "services").rglob("*.py")):
        own = path.relative_to(TOP).parts[1]
        for module in imports(path):
            parts = module.split(".")
            if own == WORKERS[0] and f"{module}.".startswith(f"{WORKERS[1]}."):
                continue
            if parts[0] in ("gateway", "deploy", "client", "conform", "tests", "bench") or (
                parts[0] == "services"
                and len(parts) > 2
                and parts[1] not in (own, "kit", "oci", "etcd")  # libraries
                and own != "kit"
                and parts[2] != "store"
                and not re.fullmatch("(.*_)?remote", parts[2])
            ):
                strays.append(f"{path.relative_to(TOP)} imports {module}")
    assert not strays


def test_records_messages_stop_at_the_gateways_edge() -> None:
    """All coordinating code gets metadata's answers in the types of gateway/store.py."""
    found = {
        path.name
        for path in sorted((TOP / "gateway").glob("*.py"))
        if any(module.startswith("api.splitd.records") for module in imports(path))
    }
    assert found == {"remote.py", "convert.py"}


def test_the_kit_imports_no_service() -> None:
    """The kit is the lowest layer."""
    strays = [
        f"{path.relative_to(TOP)} imports {module}"
        for path in sorted((TOP / "services/kit").rglob("*.py"))
        for module in imports(path)
        if module.startswith(("gateway", "deploy", "client", "conform", "services."))
        and not module.startswith(("services.kit", "services.wire"))
    ]
    assert not strays


KNOW_THE_WIRE = {
    "services/kit/chosen.py": "it is one of the transports, of which this picks one",
    "services/kit/config.py": "its bounds are settings",
    "services/kit/otlp.py": "spans are sent to collectors by it",
    "services/kit/process.py": "its bounds are set at the start of a process",
}


def test_the_wire_is_behind_the_kit() -> None:
    """No other module needs to change when calls are carried differently; the wire itself knows the kit, and no
    service.
    """
    found = {
        path.relative_to(TOP).as_posix()
        for path in python_files()
        if any(f"{module}.".startswith("services.wire.") for module in imports(path))
    }
    assert {path for path in found if not path.startswith("services/wire/")} == set(KNOW_THE_WIRE)


def test_ocis_words_import_the_kit_only() -> None:
    """They are the lowest layer: all services use them."""
    strays = [
        f"{path.relative_to(TOP)} imports {module}"
        for path in sorted((TOP / "services/oci").rglob("*.py"))
        for module in imports(path)
        if module.startswith(("gateway", "deploy", "client", "conform", "services."))
        and not module.startswith(("services.kit", "services.oci"))
    ]
    assert not strays


def test_etcd_imports_the_kit_only() -> None:
    """It is a library for those services that an operator lets use it."""
    strays = [
        f"{path.relative_to(TOP)} imports {module}"
        for path in sorted((TOP / "services/etcd").rglob("*.py"))
        for module in imports(path)
        if module.startswith(("gateway", "deploy", "client", "conform", "api.", "services."))
        and not module.startswith(("services.kit", "services.etcd"))
    ]
    assert not strays


def test_an_example_imports_the_public_face_only() -> None:
    """A service of one's own needs nothing else, and nothing of the node needs ``splitd``, the public face."""
    for path in sorted((TOP / "examples").glob("*.py")):
        ours = {module for module in imports(path) if module.split(".")[0] not in sys.stdlib_module_names}
        assert all(module.split(".")[0] == "splitd" for module in ours), path
        public = {module for module in ours if (TOP / f"{module.replace('.', '/')}.py").exists()}
        assert not [module for module in public if module.rpartition(".")[2].startswith("_")], path
    inside = [path for path in python_files() if path.relative_to(TOP).parts[0] != "splitd"]
    assert not [path for path in inside if any(is_of(module, "splitd") for module in imports(path))]


def test_the_walk_sees_imports_wherever_they_are(tmp_path: Path) -> None:
    """Late imports inside functions count, and so do generated modules that are imported from their package."""
    file = tmp_path / "x.py"
    file.write_text(
        "def f():\n    import grpc.aio\n    from api.grpc.health.v1 import health_pb2\n    if True:\n        import "
        "opentelemetry\n"
    )
    found = imports(file)
    assert all(any(is_of(m, kind) for m in found) for kind in ("grpc", "_pb2", "opentelemetry"))
    assert not any(is_of(m, "sqlite3") for m in found)


def test_every_dependency_is_used() -> None:
    """The code imports each dependency of pyproject.toml for running a node, except supervisor, which runs it, and
    etcd3, whose descriptors are read as files.
    """
    names = {
        "grpcio": "grpc",
        "hpack": "hpack",
        "uvloop": "uvloop",
        "protobuf": "google.protobuf",
        "googleapis-common-protos": "google.rpc",
        "isal": "isal",
        "aiohttp": "aiohttp",
        "zstandard": "zstandard",
        "google-re2": "re2",
        "argcomplete": "argcomplete",
        "prometheus-client": "prometheus_client",
        "opentelemetry-proto": "opentelemetry.proto",
        "opentelemetry-sdk": "opentelemetry.sdk",
    }
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert {each.partition(">=")[0] for each in project["dependencies"]} == {*names, "supervisor", "etcd3"}
    used = {module for path in [*python_files(), *sorted((TOP / "api").rglob("*_pb2.py"))] for module in imports(path)}
    assert not {
        name for name, module in names.items() if not any(m == module or m.startswith(f"{module}.") for m in used)
    }


AT_THE_START = {
    ("services/kit/rpc.py", "serving"),
    ("services/kit/chosen.py", "carrier"),
    ("services/kit/chosen.py", "server"),
    ("services/kit/channel.py", "_gathered"),
    ("services/kit/exporting.py", "_collector"),
    ("services/kit/exporting.py", "_sender_to"),
    ("services/images/registry/config_check.py", "_of_directory"),  # of `splitd config check`
    ("services/images/config.py", "check"),  # of `splitd config check`
    ("services/images/__main__.py", "check"),
    ("services/fleet/config.py", "check"),  # of `splitd config check`
    # Only where [health], [metrics] or [traces] has an address.
    ("services/kit/process.py", "_count"),
    ("gateway/__main__.py", "serve"),
    ("services/traces/__main__.py", "serve"),
    # Only where the records are in etcd.
    ("services/metadata/__main__.py", "stored"),
    # For the first transfer, whose code is kept (services/kit/later.py).
    ("services/images/__main__.py", "serve"),
    ("services/images/__main__.py", "make"),
    ("services/images/transfers.py", "_peers"),
    # For the first judgement, tap, shadow, likewise.
    ("gateway/late_server.py", "make"),
    ("gateway/late_server.py", "taps"),
    ("gateway/late_server.py", "shadows"),
    ("services/traces/server.py", "Judge"),
    # In workers, whose code is kept (services/kit/kept.py).
    ("services/snapshots/diff/compare.py", "main"),
    ("services/snapshots/diff/mounted.py", "_target"),
    ("services/snapshots/diff/mounted.py", "_mount"),
    ("services/snapshots/diff/mounted.py", "_mount_image"),
    ("services/snapshots/diff/mounted.py", "__init__"),
}
"""Functions that import our own modules: before their process serves, or from code that it kept by then."""


LATE = re.compile(r"^[ \t]+(from|import) (api|gateway|services|client|deploy)\b", re.MULTILINE)
"""An import that is not at the beginning of a line, and so perhaps in a function."""


def test_no_service_imports_more_of_ours_once_it_serves() -> None:
    """By then another release may be installed: the process would run code of two releases."""
    found = set()
    for path in [*(TOP / "services").rglob("*.py"), *(TOP / "gateway").rglob("*.py")]:
        if not LATE.search(source := path.read_text()):
            continue  # parsing all of them takes seconds
        for function in ast.walk(ast.parse(source)):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found |= {
                    (path.relative_to(TOP).as_posix(), function.name)
                    for node in ast.walk(function)
                    if isinstance(node, (ast.Import, ast.ImportFrom)) and LATE.match(f" {ast.unparse(node)}")
                }
    assert found <= AT_THE_START, f"late imports: {sorted(found - AT_THE_START)}"
