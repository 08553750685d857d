"""Modules that a process does not import: grpc if the wire carries its calls, OpenTelemetry if tracing is off."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deploy.processes import ALL
from tests.support import TOP

PROGRAMS = [
    *(f"{process.module}.__main__" for process in ALL),
    "deploy.splitd",
    "services.snapshots.diff.apply",
    "services.snapshots.diff.compare",
]


def loaded(code: str, **environment: str) -> set[str]:
    """Return the modules that a Python has imported after ``code``."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "SPLITD_"))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}\nimport sys; print(*sys.modules)"],
        env={**clean, "PYTHONPATH": str(TOP), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return {*done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("module", PROGRAMS)
def test_a_program_does_without_grpc_and_opentelemetry(module: str) -> None:
    """Only processes that use them pay their cost (160 ms and 26 MB, 5 MB). The traces process has its messages."""
    there = loaded(f"import {module}")
    assert not there & {"grpc", "opentelemetry.sdk", "requests"}
    assert module == "services.traces.__main__" or "opentelemetry" not in there


def test_images_has_its_http_client_from_its_first_pull_on() -> None:
    """It is 9 MB, which a node that only runs containers does not need."""
    assert not loaded("import services.images.__main__") & {"aiohttp", "yarl", "attr"}
    used = "from services.images.registry import transport; transport.Session(transport.TLS(), transport.Timeouts())"
    assert {"aiohttp", "yarl"} <= loaded(used)


@pytest.mark.parametrize(
    ("process", "keeper", "entrances", "others"),
    [
        (
            "services.images",
            "services.images.late_server",
            ["services.images.transfers"],
            ["services.images.transfer", "services.images.distribution.puller", "services.images.registry.auth"],
        ),
        ("services.traces", "services.traces.__main__", ["services.traces.verdict"], ["services.traces.tree"]),
        (
            "gateway",
            "gateway.late_server",
            ["gateway.taps_server", "gateway.shadows_server"],
            ["gateway.faults", "services.shadows.store"],
        ),
    ],
)
def test_what_a_process_may_never_need_is_loaded_late(
    process: str, keeper: str, entrances: list[str], others: list[str]
) -> None:
    """What makes transfers is 70 modules, 6 MB. All of ours that are loaded late are of the release that the process
    was started with, whatever is installed meanwhile.
    """
    rest = (
        f"import sys, {process}.__main__; from {keeper} import kept; from services.kit import process; process.tune()"
    )
    assert not {*entrances, *others} & loaded(rest)
    late = f"""
code = kept()
before = {{*sys.modules}}
import {", ".join(entrances)}
late = {{name: module for name, module in sys.modules.items() if name not in before}}
strays = [name for name, module in late.items() if module.__spec__.loader is not code]
ours = [name for name in strays if name.partition(".")[0] in ("api", "gateway", "services")]
assert not ours, ours"""
    assert {*entrances, *others} <= loaded(f"{rest}\n{late}")


def test_the_address_of_a_page_loads_no_server() -> None:
    """All processes read that of the metrics, and only the gateway serves them: 0.3 MB in each of the others."""
    there = loaded("from services.kit import config; config.Metrics(address='127.0.0.1:1')")
    assert "services.kit.http_server" not in there


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_spans_are_exported_without_grpc(protocol: str) -> None:
    """This holds for each protocol of the collector."""
    there = loaded(
        (
            "from pathlib import Path; from services.kit import config, exporting, tracing; "
            "exporting.begin('x', config.Tracing(), Path('/no/such/place')); tracing.root('y').end(); "
            "tracing.shutdown()"
        ),
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
    )
    assert "services.kit.otlp_spans" in there
    assert not there & {"grpc", "requests", "opentelemetry.metrics"}


def test_the_node_alone_gets_spans_without_opentelemetry() -> None:
    """Its SDK is for what the environment says of a process to a collector."""
    there = loaded(
        "from pathlib import Path; from services.kit import config, exporting, tracing; "
        "exporting.begin('x', config.Tracing(), Path('/no/such/place')); tracing.root('y').end(); tracing.shutdown()"
    )
    assert "services.kit.otlp_spans" in there
    assert "opentelemetry" not in there


def test_the_test_would_see_grpc() -> None:
    """It is imported if it is the configured transport."""
    assert "grpc" in loaded("import services.kit.grpcio")


def test_a_configuration_is_checked_without_the_client_of_registries() -> None:
    """``splitd up`` does so before it starts anything: aiohttp would delay each start by 0.14 s."""
    code = "from deploy import configuration; assert not configuration.check(None).errors"
    assert not loaded(code) & {"aiohttp", "yarl", "grpc", "services.metadata.gc.collector"}
