"""How a transfer that was not done is told."""

from __future__ import annotations

import pytest

from deploy import transferring
from deploy.failure import Failure
from services.kit import errors


async def failing(error: errors.NodeError) -> None:
    raise error


def test_what_is_kept_is_said_where_a_service_went_away() -> None:
    """As when it is restarted for an upgrade. What a registry does is its own matter, and has its own words."""
    stopped = errors.Unavailable("service images is not reachable (/containerd.services.transfer.v1.Transfer/Transfer: the service is stopping: unavailable)")
    with pytest.raises(Failure, match=r"^service images is not reachable \(/containerd.services.transfer.v1.Transfer/Transfer: the service is stopping\); the same command goes on$"):
        transferring.run(failing(stopped), "the same command goes on")
    with pytest.raises(errors.Unavailable, match="unavailable$"):
        transferring.run(failing(errors.Unavailable("failed to resolve: registry.test: 503 Service Unavailable")), "the same command goes on")
    with pytest.raises(errors.Unavailable):
        transferring.run(failing(stopped))
