"""How spans are gathered before they are sent: what the standard variables OTEL_BSP_* say, read here and not by the
SDK.

The SDK raises over some values, and names no variable. MAX_QUEUE_SIZE is how many spans wait at most (2048), what comes
then is lost; MAX_EXPORT_BATCH_SIZE how many are sent at once at most (512, and never more than may wait);
SCHEDULE_DELAY the milliseconds from one batch to the next (5000); EXPORT_TIMEOUT those for a batch (30000), with which
the SDK does nothing: OTEL_EXPORTER_OTLP_TIMEOUT is what counts.
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
"""Each with its default (OpenTelemetry's) and the most that it may say."""


@dataclass(frozen=True, slots=True)
class Batching:
    """Values that the SDK takes."""

    queue: int
    batch: int
    delay: int
    """Milliseconds."""
    timeout: int
    """Milliseconds."""


def read(environment: Mapping[str, str]) -> tuple[Batching, list[str]]:
    """What the environment says, and a line for each variable that cannot be taken as it is, with what is done in
    its place.
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
    wrong.append(f"{name}={text[:100]} is not a whole number from 1 to {most}: {default} is taken")
    return default
