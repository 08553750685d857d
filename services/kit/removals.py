"""splitd.removals.v1.Removals: removes many things of a raw store in one call. For the services whose things metadata's
records name.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from api.splitd.removals.v1 import removals_pb2 as pb
from api.splitd.removals.v1 import removals_stubs
from services.kit import errors
from services.kit.call import Call

log = logging.getLogger(__name__)

MOST = 1024
"""Things in one call."""

Outcome = BaseException | None
"""Why a thing was not removed, or None."""


class RemovalsServicer:
    """``remove`` is given kinds and names, and returns the outcome of each, in order."""

    SERVICE = removals_stubs.REMOVALS

    def __init__(self, remove: Callable[[Sequence[tuple[str, str]]], Awaitable[Sequence[Outcome]]]) -> None:
        self._remove = remove

    async def Remove(self, request: pb.RemoveRequest, call: Call) -> pb.RemoveResponse:
        if len(request.things) > MOST:
            raise errors.InvalidArgument(f"{len(request.things)} things to remove, more than {MOST}")
        outcomes = await self._remove([(thing.kind, thing.name) for thing in request.things])
        return pb.RemoveResponse(outcomes=[_to_pb(outcome) for outcome in outcomes])


def _to_pb(outcome: Outcome) -> pb.Outcome:
    if outcome is None:
        return pb.Outcome()
    if isinstance(outcome, errors.NodeError):
        return pb.Outcome(code=outcome.code, message=str(outcome))
    log.error("a removal failed unexpectedly", exc_info=outcome)
    return pb.Outcome(code=errors.Internal.code, message="internal error")


def from_pb(outcome: pb.Outcome) -> errors.NodeError | None:
    """The outcome of one removal, as :class:`RemovalsServicer` sends it."""
    return errors.from_status(outcome.code, outcome.message) if outcome.code else None
