"""What one says of a span: short words for its name, its process and what its attributes tell (docs/tracing.md lists
them). All of it may come from outside; whoever prints it escapes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from client import bars
from services.traces.store import Span, Status, Value

LONGEST = 200
"""Characters of a text that are shown."""

_DIGEST = re.compile("([0-9a-z]+:[0-9a-f]{12})[0-9a-f]{20,}")
"""A digest, of which the beginning is shown."""

_WORKER = {
    "splitd.time.cpu_ms": "processor",
    "splitd.time.runqueue_ms": "no processor free",
    "splitd.time.disk_ms": "disk",
    "splitd.time.bytes_ms": "no bytes",
}


def title(span: Span) -> str:
    """Its name; of a call, without the package: ``Content/Info``."""
    name = span.name[:LONGEST].strip() or "(without a name)"
    service, slash, method = name.rpartition("/")
    return f"{service.rpartition('.')[2]}/{method}" if slash and "." in service and " " not in name else name


def process(span: Span) -> str:
    """Its process: ``images``."""
    return span.service[:LONGEST].removeprefix("splitd-") or "?"


def text(value: Value) -> str:
    """An attribute as a text on one line; "" of what is none."""
    if isinstance(value, str):
        return value[:LONGEST]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"{value:.12g}"


def number(value: Value) -> float:
    """An attribute as a number that is finite and not negative; 0 of others."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 <= value < 1 << 63 else 0.0


def seconds(value: float) -> str:
    """``31 ms``, ``4.23 s``, or ``3m20s``."""
    if value < 0.0009995:
        return f"{value * 1e6:.0f} us" if value else "0"
    if value < 0.9995:
        return f"{value * 1e3:.3g} ms" if value < 0.00995 else f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s" if value < 9.995 else bars.duration(value)


def layer(span: Span) -> int | None:
    """The number from 0 of the layer that it is about; None if it is about none."""
    value = span.attributes.get("splitd.layer")
    return None if value is None else int(number(value))


def named_layer(found: int | None) -> str:
    """``layer 3``, since people count from 1; "" for None."""
    return "" if found is None else f"layer {found + 1}"


def notes(span: Span) -> list[str]:
    """What its attributes say, in a few words each: ``layer 3``, ``15.0 MiB``, ``from 10.0.0.1:5000``."""
    return list(dict.fromkeys(_notes(span)))


def _notes(span: Span) -> Iterator[str]:
    attributes = span.attributes
    if span.status == Status.ERROR:
        yield text(span.message) or "failed"
    if (what := text(attributes.get("splitd.wait.for"))) and span.name.startswith("wait."):
        yield what
    if reason := text(attributes.get("splitd.pause.reason")):
        yield reason
    if fault := text(attributes.get("splitd.fault")):
        yield f"splitd fault {fault}"
    if said := named_layer(layer(span)):
        yield said
    if container := text(attributes.get("container.id")):
        yield f"container {container}"
    if moved := number(attributes.get("splitd.bytes")) or number(attributes.get("splitd.size")):
        yield bars.size(moved)
    if host := text(attributes.get("server.address")):
        mirror = " (a mirror)" if attributes.get("splitd.registry.mirror") is True else ""
        yield f"{host}{mirror}" if span.name.startswith("wait.") else f"from {host}{mirror}"
    if method := text(attributes.get("http.request.method")):
        path = _DIGEST.sub(r"\1", text(attributes.get("url.path")))
        yield " ".join(filter(None, (method, path, text(attributes.get("http.response.status_code")))))
    for key, words in _WORKER.items():
        if (spent := number(attributes.get(key)) / 1000) >= max(0.001, span.seconds / 20):
            yield f"{words} {seconds(spent)}"
    if (folded := number(attributes.get("splitd.folded.count"))) > 1:
        spent = number(attributes.get("splitd.folded.ms")) / 1000
        if spent >= span.seconds / 4:
            yield f"{folded:.0f} short steps {seconds(spent)}"
    if attributes.get("splitd.background") is True:
        yield "nobody waits for it"
