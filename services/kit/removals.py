"""splitd.removals.v1.Removals: removes many things of a raw store in one call. The services serve it whose things have
records in metadata.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

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
    """Serves removals. ``remove`` gets kinds and names, and returns the outcome of each, in their order.
    ``remove_blobs`` gets digests only, and returns the failures by their place; without it blobs go to ``remove``.
    """

    SERVICE = removals_stubs.REMOVALS

    def __init__(
        self,
        remove: Callable[[Sequence[tuple[str, str]]], Awaitable[Sequence[Outcome]]],
        remove_blobs: Callable[[Sequence[str]], Awaitable[Mapping[int, Exception]]] | None = None,
    ) -> None:
        self._remove = remove
        self._remove_blobs = remove_blobs

    async def Remove(self, request: pb.RemoveRequest, call: Call) -> pb.RemoveResponse:
        if (count := len(request.things) + len(request.blobs)) > MOST:
            raise errors.InvalidArgument(f"{count} things to remove, more than {MOST}")
        if not request.blobs:
            outcomes = await self._remove([(thing.kind, thing.name) for thing in request.things])
        elif request.things:
            raise errors.InvalidArgument("either things or blobs are removed in one call")
        elif self._remove_blobs is None:
            outcomes = await self._remove([("blob", digest) for digest in request.blobs])
        else:
            failed = await self._remove_blobs(list(request.blobs))
            if not failed:
                return pb.RemoveResponse(all=True)
            outcomes = [failed.get(number) for number in range(len(request.blobs))]
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
