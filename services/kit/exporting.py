"""Connects tracing with its exporter: :mod:`services.kit.tracing` makes spans and knows no exporter;
:mod:`services.kit.otlp` is the one that it is given here.

OpenTelemetry's modules are imported only if the environment asks for traces.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.kit import tracing


def begin(service: str) -> None:
    """Begin tracing as ``service``, if the environment asks for it (:func:`tracing.setup
    <services.kit.tracing.setup>`).
    """
    tracing.setup(service, _collector)


def check() -> Iterator[str]:
    """What is wrong with the variables. This stops no process, but there will be no traces, or other traces than
    wanted.
    """
    return tracing.check(_collector)


def _collector() -> Any:
    from services.kit import otlp

    return otlp.configured()
