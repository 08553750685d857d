"""The metrics of transfers: how they end, and where their time with registries goes."""

from __future__ import annotations

from collections.abc import Mapping

from services.kit import metrics

_TRANSFERS = metrics.Counter("splitd_transfers_total", "Transfers, by kind and outcome.", "operation", "outcome")
_TRANSFER_SECONDS = metrics.Histogram(
    "splitd_transfer_seconds", "Seconds of a transfer.", "operation", bounds=metrics.MINUTES
)
_REQUESTS = metrics.Counter("splitd_registry_requests_total", "Requests to registries, by status.", "host", "status")
_SECONDS = metrics.Counter(
    "splitd_registry_seconds_total", "Seconds of requests to registries, by stage.", "host", "stage"
)
_RECEIVED = metrics.Counter("splitd_registry_received_bytes_total", "Bytes of registries' answers.", "host")
_PAUSES = metrics.Counter("splitd_registry_pauses_total", "Pauses before a registry is asked again.", "host", "reason")


def transferred(operation: str, outcome: str, seconds: float) -> None:
    """A transfer has ended: ``ok``, ``failed`` or ``cancelled``."""
    _TRANSFERS.add(1, operation, outcome)
    _TRANSFER_SECONDS.observe(seconds, operation)


def answered(host: str, status: int, phases: Mapping[str, float]) -> None:
    """A request has its answer's head, or has none: then ``status`` is 0. ``phases``: the seconds of each."""
    _REQUESTS.add(1, host, str(status) if status else "failed")
    for phase, seconds in phases.items():
        _SECONDS.add(seconds, host, phase)


def received(host: str, size: int, waited: float) -> None:
    """The body of an answer has ended: its bytes, and the seconds without any."""
    _RECEIVED.add(size, host)
    _SECONDS.add(waited, host, "body")


def paused(host: str, reason: str, seconds: float) -> None:
    """A registry is asked again after a pause."""
    _PAUSES.add(1, host, reason)
    _SECONDS.add(seconds, host, "pause")
