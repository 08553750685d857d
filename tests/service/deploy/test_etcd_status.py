"""What ``splitd status`` says of an etcd cluster, from what real servers answer."""

from __future__ import annotations

import json
import re

from deploy import etcds
from services.etcd.config import EtcdConfig
from services.etcd.store import ClusterStatus
from tests.etcd_servers import DEBIAN, etcd, version_of
from tests.support import eventually, within

TABLE = "metadata.etcd"


def states(*endpoints: str) -> dict[str, ClusterStatus]:
    return etcds.states({TABLE: EtcdConfig(endpoints=endpoints, timeout=1.0)})


def test_a_cluster_and_its_lost_members_are_told() -> None:
    """While a quorum is there it is one line, and one for each lost member; afterwards it says that etcd is away."""
    with etcd(DEBIAN, count=3) as cluster:

        def well(count: int) -> bool:
            first = next(etcds.lines(states(*cluster.endpoints)))
            return first.startswith(f"etcd of [{TABLE}]: {count} of 3 members, version {version_of(DEBIAN)}, revision ")

        eventually(lambda: well(3), "all members are there")
        found = states(*cluster.endpoints)
        assert len(list(etcds.lines(found))) == 1
        (described,) = json.loads(json.dumps(etcds.described(found)))
        assert described["table"] == TABLE
        assert described["available"] is True
        assert [member["endpoint"] for member in described["members"]] == list(cluster.endpoints)
        cluster.members[2].kill()
        eventually(lambda: well(2), "one member is lost")
        last = list(etcds.lines(states(*cluster.endpoints)))[-1]
        assert last.startswith(f"etcd of [{TABLE}]: member {cluster.members[2].endpoint}: ")
        cluster.members[1].kill()
        with within(10):
            away = list(etcds.lines(states(*cluster.endpoints)))
        assert re.match(rf"etcd of \[{TABLE}\] is away: .+", away[0])


def test_a_node_without_etcd_asks_nobody() -> None:
    """And says nothing of it."""
    assert etcds.states({}) == {}
    assert list(etcds.lines({})) == []
