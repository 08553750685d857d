"""How spans are gathered before they are sent. The standard variables OTEL_BSP_* configure this. They are read here and
not by the SDK, which raises on some values and names no variable.

- MAX_QUEUE_SIZE: spans that may wait (2048). Further spans are lost.
- MAX_EXPORT_BATCH_SIZE: spans that are sent at once (512); never more than may wait.
- SCHEDULE_DELAY: milliseconds from one batch to the next (5000).
- EXPORT_TIMEOUT: milliseconds for a batch (30000). The SDK ignores it; OTEL_EXPORTER_OTLP_TIMEOUT counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_DAY = 86_400_000
_QUEUE, _BATCH = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"

VARIABLES = {
    _QUEUE: (2048, 1 << 20),
    _BATCH: (512, 1 << 20),
    "OTEL_BSP_SCHEDULE_DELAY": (5000, _DAY),
    "OTEL_BSP_EXPORT_TIMEOUT": (30_000, _DAY),
}
"""The default (OpenTelemetry's) and the largest value of each."""


@dataclass(frozen=True, slots=True)
class Batching:
    """Valid values for the SDK."""

    queue: int
    batch: int
    delay: int
    """Milliseconds."""
    timeout: int
    """Milliseconds."""


def read(environment: Mapping[str, str]) -> tuple[Batching, list[str]]:
    """Read the environment. The result includes a line for each variable whose value cannot be used, with the value
    that is used instead.
    """
    wrong: list[str] = []
    values = {name: _value(name, environment.get(name, "").strip(), wrong) for name in VARIABLES}
    if values[_BATCH] > values[_QUEUE]:
        if environment.get(_BATCH, "").strip():
            wrong.append(
                f"{_BATCH}={values[_BATCH]} is more than {_QUEUE}, {values[_QUEUE]}: batches have {values[_QUEUE]}"
            )
        values[_BATCH] = values[_QUEUE]
    return Batching(*values.values()), wrong


def _value(name: str, text: str, wrong: list[str]) -> int:
    default, most = VARIABLES[name]
    if not text:
        return default
    if text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= most:
        return int(text)
    wrong.append(f"{name}={text[:100]} is not a whole number from 1 to {most}: {default} is used")
    return default
