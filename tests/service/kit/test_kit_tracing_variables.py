"""No error of tracing stops a service: with any values of the variables OTEL_... it serves, and its log and ``splitd
config check`` name the variable.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ServiceProcess, splitd

pytestmark = pytest.mark.once

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}

QUIET: list[dict[str, str]] = [{"OTEL_BSP_MAX_QUEUE_SIZE": "100"}]
ADAPTED: list[dict[str, str]] = [{"OTEL_BSP_SCHEDULE_DELAY": "0"}, {"OTEL_BSP_MAX_QUEUE_SIZE": "9" * 30}]
OFF: list[dict[str, str]] = [
    {"OTEL_EXPORTER_OTLP_TIMEOUT": "nan"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://box:1", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such/file"},
]


@pytest.mark.parametrize(
    "variables", [*QUIET, *ADAPTED, *OFF], ids=lambda v: " ".join(f"{name}={value}" for name, value in v.items())[:80]
)
def test_a_service_serves_and_the_variable_is_named(variables: dict[str, str], place: Path) -> None:
    """There is a warning if tracing goes on with another value, an error if no collector
    gets any, and no message if the
    value is good.
    """
    environment = {**ENDPOINT, **variables}
    name = list(variables)[-1]
    with ServiceProcess("services.content", place / "r", place / "s", env=environment) as service:
        text = service.text()
    lines = [line for line in text.splitlines() if name in line]
    check = splitd("config", "check", "--config", "/dev/null", env=environment, ok=variables in QUIET)
    if variables in QUIET:
        assert not lines
        assert not check.stderr
    else:
        assert (" ERROR " if variables in OFF else " WARNING ") in lines[0]
        assert ("no collector gets traces" in lines[0]) == (variables in OFF)
        assert name in check.stderr
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_TRACES_SAMPLER", "always_off", "OTEL_TRACES_SAMPLER has no effect: [tracing]"),
        ("OTEL_RESOURCE_ATTRIBUTES", "nothing", "OTEL_RESOURCE_ATTRIBUTES: nothing is not NAME=VALUE"),
    ],
)
def test_check_reports_what_has_another_effect(name: str, value: str, said: str) -> None:
    """What is no attribute is left out, and some variables are not for the node."""
    done = splitd("config", "check", "--config", "/dev/null", env={**ENDPOINT, name: value}, ok=False)
    assert said in done.stderr
    # without an endpoint nothing is traced
    assert not splitd("config", "check", "--config", "/dev/null", env={name: value}).stderr
