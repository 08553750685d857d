"""Sends the spans of this process away: to the node's traces service, and to a collector if the environment names one.

:mod:`services.kit.tracing` makes spans and knows no exporter; :mod:`services.kit.otlp` is the one that it is given
here. Each of the two ways has a queue and a thread of its own (:mod:`services.kit.batching`), so that a collector that
is slow holds nothing up.

The table [tracing] says how. Its file is looked at again while the process runs, so that its changes take effect within
seconds.
"""

from __future__ import annotations

import logging
import os
import time
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
ASKED = "traces.asked"
"""A file in STATE that the traces service touches when somebody asks what is in flight. Then each process says it each
second for a while, which it else does more and more seldom.
"""
_RECENTLY = 5.0
"""Seconds for which they do."""
_QUIET = 500
"""Milliseconds without a span after which the traces service gets those that there are, if nothing is open. What goes
on for longer is sent in few batches: a call costs as much as 15 spans.
"""
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
    ways = [] if state_directory is None else [_ToNode(name, config, state_directory, file).batches]
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


class _ToNode:
    """The way to the traces service, or to the collector that takes its place (``endpoint``). Its thread looks at the
    configuration file, and takes what has changed.
    """

    def __init__(self, name: str, config: Tracing, directory: Path, file: Path | None) -> None:
        self._name = name
        self._config = config
        self._directory = directory
        self._file = file
        self._seen = self._stamp()
        self._sender = self._sender_to(config)
        self.batches = batching.Batches(
            self._sender.export,
            _values(config),
            report=self._report(),
            look=self._look,
            asked=lambda: asked(directory),
            later=self._sender.finish,
        )

    def _sender_to(self, config: Tracing) -> Any:
        from services.kit import otlp

        where = config.endpoint or f"unix:{self._directory / SOCKET}"
        place = otlp.place_of(otlp.Variable("[tracing] endpoint", where))
        # the node works without its own service, and says itself which of its processes are down
        return otlp.Local(place, self._name, _PATIENCE, logging.WARNING if config.endpoint else logging.INFO)

    def _report(self) -> batching.Report | None:
        """Only our own service wants to know which spans are open."""
        return None if self._config.endpoint else self._sender.report

    def _stamp(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._file) if self._file is not None else None
        except OSError:
            status = None
        return (0, 0, 0) if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)

    def _look(self) -> None:
        """Read the file if it has changed. In the thread that sends."""
        stamp = self._stamp()
        if stamp in (self._seen, (0, 0, 0)):
            return
        self._seen = stamp
        try:
            config = settings.load(Tracing, settings.read(self._file), "tracing")
            sender = None if config.endpoint == self._config.endpoint else self._sender_to(config)
        except Exception as error:  # whatever somebody has written there: the thread goes on
            log.warning("tracing goes on as before: %s", error or type(error).__name__)
            return
        if config == self._config:
            return
        self._config = config
        if sender is not None:
            before, self._sender = self._sender, sender
            before.close()
        self.batches.change(self._sender.export, _values(config), report=self._report(), later=self._sender.finish)
        state.ratio, state.fold, state.on = config.sampling_ratio, int(config.fold * 1e9), config.enabled
        log.info(
            "tracing is %s: sampling_ratio %g, fold %s, spans go to %s",
            "on" if config.enabled else "off",
            config.sampling_ratio,
            settings.format_duration(config.fold),
            config.endpoint or "the node's traces service",
        )


def asked(directory: Path) -> bool:
    """Whether somebody has asked what is in flight within the last seconds, by the file in STATE. A realtime clock that
    is set meanwhile only changes how many.
    """
    try:
        return abs(time.time() - os.stat(directory / ASKED).st_mtime) < _RECENTLY
    except OSError:  # nobody ever has
        return False


def _values(config: Tracing) -> Batching:
    return Batching(
        config.max_queue_size,
        min(config.max_export_batch_size, config.max_queue_size),
        max(1, int(config.schedule_delay * 1000)),
        int(_PATIENCE * 1000),
        _QUIET,
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
