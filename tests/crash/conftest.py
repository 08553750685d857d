"""Where the nodes of the crash tests have their records: in SQLite, or in etcd if CRASH_STORE is that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.etcd_servers import records_in_etcd


@pytest.fixture(scope="module")
def records() -> Iterator[Callable[[], str]]:
    """The configuration of a node of its own, by each call."""
    store = os.environ.get("CRASH_STORE", "sqlite")
    assert store in ("sqlite", "etcd"), f"CRASH_STORE={store}: it is sqlite or etcd"
    if store == "sqlite":
        yield str
        return
    with records_in_etcd() as configured:
        yield configured
