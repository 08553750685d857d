"""What all spans of a process have in common. OpenTelemetry calls it a resource."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import unquote

from services.kit import spans
from services.kit.version import SPLITD

ATTRIBUTES = "OTEL_RESOURCE_ATTRIBUTES"


def resource(service: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The attributes of process ``service``: ``service.name`` is ``splitd-content`` for ``content``, unless
    OTEL_SERVICE_NAME names another; and what OTEL_RESOURCE_ATTRIBUTES adds.
    """
    name = environment.get("OTEL_SERVICE_NAME", "").strip() or f"splitd-{service}"
    ours = {"service.name": spans.text(name), "service.version": SPLITD, "service.instance.id": str(os.getpid())}
    return added(environment)[0] | ours


def added(environment: Mapping[str, str] = os.environ) -> tuple[dict[str, str], list[str]]:
    """The attributes in OTEL_RESOURCE_ATTRIBUTES (``name=value,name=value``, in URL encoding), and a line for each
    entry that cannot be used.
    """
    found: dict[str, str] = {}
    wrong: list[str] = []
    for item in environment.get(ATTRIBUTES, "").split(","):
        name, separator, value = item.partition("=")
        if separator and name.strip():
            found[spans.text(unquote(name.strip()))] = spans.text(unquote(value.strip()))
        elif item.strip():
            wrong.append(f"{ATTRIBUTES}: {spans.text(item.strip())[:100]} is not NAME=VALUE, and is left out")
    return found, wrong
