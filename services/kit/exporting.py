"""Sends the spans of this process away: to the node's traces service, and to a collector if the environment names one.

:mod:`services.kit.tracing` makes spans and knows no exporter; :mod:`services.kit.otlp` is the one that it is given
here. Each of the two ways has a queue and a thread of its own (:mod:`services.kit.batching`), so that a collector that
is slow holds nothing up.

The table [tracing] says how. Its file is looked at again while the process runs, so ``enabled``, ``sampling_ratio`` and
``fold`` take effect at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.kit import batching, resource, settings, tracing
from services.kit.batching import Batching
from services.kit.config import Tracing
from services.kit.spans import Span, state

log = logging.getLogger(__name__)

SOCKET = "traces.sock"
"""The traces service's socket in STATE."""
_PATIENCE = 2.0
"""Seconds in which a batch must be taken by the traces service, which is on this machine."""


def begin(name: str, config: Tracing, state_directory: Path | None, file: Path | None = None) -> None:
    """Begin to make and send spans as process ``name``: to the traces service of the node at ``state_directory``, if
    there is one. ``file`` is the configuration file, whose changes count.

    If the environment describes a collector in a way that cannot be used, this is logged, and only the traces service
    gets the spans.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return
    ways = [] if state_directory is None else [_to_node(name, config, state_directory, _Live(config, file))]
    if _wanted():
        try:
            ways.append(_to_collector(name))
        except Exception as error:  # whatever is wrong with the environment
            log.error("no collector gets traces: %s", _reason(error))
    if not ways:
        return
    puts = [way.put for way in ways]

    def put(span: Span) -> None:
        for each in puts:
            each(span)

    def finish(seconds: float) -> None:
        for way in ways:
            way.end(seconds)
        for way in ways:
            way.join()

    state.ratio = config.sampling_ratio
    tracing.setup(put if len(puts) > 1 else puts[0], on=config.enabled, fold=config.fold, finish=finish)


class _Live:
    """The settings that may change while the process runs."""

    def __init__(self, config: Tracing, file: Path | None) -> None:
        self._config = config
        self._file = file
        self._seen = self._stamp()

    def _stamp(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._file) if self._file is not None else None
        except OSError:
            status = None
        return (0, 0, 0) if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)

    def look(self) -> None:
        """Read the file if it has changed."""
        stamp = self._stamp()
        if stamp in (self._seen, (0, 0, 0)):
            return
        self._seen = stamp
        try:
            config = settings.load(Tracing, settings.read(self._file), "tracing")
        except Exception as error:  # whatever somebody has written there: the thread goes on
            log.warning("tracing goes on as before: %s", error or type(error).__name__)
            return
        if config != self._config:
            self._config = config
            state.ratio, state.fold, state.on = config.sampling_ratio, int(config.fold * 1e9), config.enabled
            log.info(
                "tracing is %s: sampling_ratio %g, fold %s",
                "on" if config.enabled else "off",
                config.sampling_ratio,
                settings.format_duration(config.fold),
            )


def _to_node(name: str, config: Tracing, directory: Path, live: _Live) -> batching.Batches:
    from services.kit import otlp

    place = otlp.place_of(otlp.Variable("[tracing] endpoint", config.endpoint or f"unix:{directory / SOCKET}"))
    # the node works without its own service, and says itself which of its processes are down
    local = otlp.Local(place, name, _PATIENCE, logging.WARNING if config.endpoint else logging.INFO)
    return batching.Batches(
        local.export,
        Batching(
            config.max_queue_size,
            min(config.max_export_batch_size, config.max_queue_size),
            max(1, int(config.schedule_delay * 1000)),
            int(_PATIENCE * 1000),
        ),
        report=None if config.endpoint else local.report,
        look=live.look,
        later=local.finish,
    )


def _to_collector(name: str) -> batching.Batches:
    values, wrong = batching.read(os.environ)
    for line in (*wrong, *resource.wrong()):
        log.warning(line)
    exporter = _collector(name)
    return batching.Batches(exporter.export, values, later=exporter.finish)


def _collector(name: str) -> Any:
    from services.kit import otlp

    return otlp.configured(name)


# ---------------------------------------------------------------------------------------------- the environment


def check() -> Iterator[str]:
    """What is wrong with the variables. This stops no process, but there will be no traces, or other traces than
    wanted.
    """
    yield from batching.read(os.environ)[1]
    if not _wanted():
        return
    yield from resource.wrong()
    try:
        _collector("check").close()
    except Exception as error:
        yield f"no collector gets traces: {_reason(error)}"
    for variable in _WITHOUT_EFFECT:
        if os.environ.get(variable, "").strip():
            yield f"{variable} has no effect: [tracing] in the configuration says what is recorded"


_WITHOUT_EFFECT = (
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
)


def _reason(error: Exception) -> str:
    """The message of an error: with the variable's name, if it is ours; else with the kind of error, and a hint."""
    said = str(error)
    return said if "OTEL_" in said else f"{type(error).__name__}: {said} (one of the OTEL_... variables is wrong)"


def _wanted() -> bool:
    off = (
        os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    )
    where = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return bool(where) and not off
