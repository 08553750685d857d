"""Counts the calls that a process answers: a listener of :mod:`services.kit.observer`.

The names are those of go-grpc-prometheus, which containerd has: ``grpc_server_handled_total`` by code, and
``grpc_server_handling_seconds``. That one has buckets if ``[metrics] grpc_histogram`` says so, as in containerd, and
otherwise only the sum and the number. Calls that a gateway relays count as answered by it. Methods that no descriptor
has, which any client may invent, are counted together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from google.protobuf import descriptor_pool

from services.kit import metrics
from services.kit.observer import Side

_CODES = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)
"""gRPC's codes as Go writes them."""
_CANCELED = 1
_LABELS = ("grpc_service", "grpc_method", "grpc_type")
_METHODS = 500
"""Methods that are counted by their names."""
_INVENTED = (metrics.OTHER, metrics.OTHER, "unknown")
_TYPES = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}


class Calls:
    """The listener; ``histogram``: with buckets."""

    def __init__(self, *, histogram: bool = False) -> None:
        self._handled = metrics.Counter(
            "grpc_server_handled_total", "Calls that were answered, by code.", *_LABELS, "grpc_code"
        )
        made = metrics.Histogram if histogram else metrics.Summary
        self._seconds = made("grpc_server_handling_seconds", "Seconds from a call's beginning to its end.", *_LABELS)
        self._known: dict[str, tuple[str, str, str]] = {}

    def began(self, side: Side, method: str, headers: Mapping[str, str | bytes]) -> _Call | _Nothing:
        """A call begins (``kit.observer``)."""
        return _NOTHING if side == "client" else _Call(self, method)

    def ended(self, method: str, code: int, seconds: float) -> None:
        """A call was answered."""
        named = self._known.get(method) or self._named(method, answered=code == 0)
        self._handled.add(1, *named, _CODES[code] if 0 <= code < len(_CODES) else str(code))
        self._seconds.observe(seconds, *named)

    def _named(self, method: str, *, answered: bool) -> tuple[str, str, str]:
        service, _, name = method.strip("/").rpartition("/")
        try:
            found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        except KeyError:  # a gateway knows the services of others by their answers only
            if not answered or len(self._known) >= _METHODS:
                return _INVENTED
            self._known[method] = (service, name, "unknown")
        else:
            self._known[method] = (service, name, _TYPES[found.client_streaming, found.server_streaming])
        return self._known[method]


class _Nothing:
    """A call that is not counted: one that this process makes."""

    __slots__ = ()
    inside = False

    def headers(self) -> tuple[tuple[str, str], ...]:
        return ()

    def enter(self) -> None:
        return

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        return

    def left(self, size: int = 0) -> None:
        return


_NOTHING = _Nothing()


class _Call(_Nothing):
    """A call that is being answered."""

    __slots__ = ("_begun", "_calls", "_method")

    def __init__(self, calls: Calls, method: str) -> None:
        self._calls = calls
        self._method = method
        self._begun = time.monotonic()

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        self._calls.ended(self._method, code, time.monotonic() - self._begun)

    def left(self, size: int = 0) -> None:
        self._calls.ended(self._method, _CANCELED, time.monotonic() - self._begun)
