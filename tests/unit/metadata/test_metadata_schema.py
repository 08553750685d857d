"""How records are written down, and what is remembered of them."""

from __future__ import annotations

from services.metadata import schema
from services.metadata.store import Container, Opaque


def test_what_is_remembered_is_bounded() -> None:
    """A container that is asked for again is decoded once; one as large as a message may be is not kept in memory."""
    small, large = (Container(id="c", runtime="r", spec=Opaque("t", b" " * size)) for size in (20_000, 9_000_000))
    for container, kept in ((small, True), (large, False)):
        value = schema.CONTAINERS.encode(container)
        one, other = (schema.CONTAINERS.decode(("default", "c"), value) for _ in range(2))
        assert one == other
        assert one.spec == container.spec
        assert (one is other) is kept
