"""What all spans of a process have in common. OpenTelemetry calls it a resource."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from services.kit import spans
from services.kit.version import SPLITD

ATTRIBUTES = "OTEL_RESOURCE_ATTRIBUTES"


def resource(service: str) -> dict[str, str]:
    """The attributes of process ``service``: ``service.name`` is ``splitd-content`` for ``content``."""
    return {"service.name": f"splitd-{service}", "service.version": SPLITD, "service.instance.id": str(os.getpid())}


def described(service: str) -> dict[str, str]:
    """The same for a collector that the environment names, with what the environment adds: OTEL_SERVICE_NAME,
    OTEL_RESOURCE_ATTRIBUTES, and the detectors in OTEL_EXPERIMENTAL_RESOURCE_DETECTORS. OpenTelemetry's SDK reads
    these. It takes 2 MB, so only processes that have such a collector import it.
    """
    from opentelemetry.sdk.resources import Resource

    ours = resource(service)
    if name := os.environ.get("OTEL_SERVICE_NAME", "").strip():
        ours["service.name"] = name
    found = Resource.create(dict(ours)).attributes
    return {spans.text(key): spans.text(str(value)) for key, value in found.items()}


def wrong(environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """A line for each entry of OTEL_RESOURCE_ATTRIBUTES that cannot be used."""
    for item in environment.get(ATTRIBUTES, "").split(","):
        name, separator, _ = item.partition("=")
        if item.strip() and not (separator and name.strip()):
            yield f"{ATTRIBUTES}: {spans.text(item.strip())[:100]} is not NAME=VALUE, and is left out"
