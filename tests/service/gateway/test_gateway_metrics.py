"""The page of metrics, with and without the services behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.metrics import rendered
from services.kit.metrics import Family, Sample
from tests.pages import asked, series
from tests.support import ServiceProcess, eventually

pytestmark = pytest.mark.once


def shown(path: Path) -> dict[str, float]:
    """The series of the page."""
    return series(asked(path, "/v1/metrics")[1].decode())


def test_one_page_has_the_metrics_of_every_process(place: Path) -> None:
    """Each series names its service; one that is down hides nothing of the others."""
    config, where = place / "c.toml", place / "metrics.sock"
    config.write_text(f'[metrics]\naddress = "{where}"\ngrpc_histogram = true\n')
    with ServiceProcess("gateway", place / "r", place / "s", sockets=("containerd.sock",), config=config):
        eventually(where.is_socket, "it does not listen")
        assert asked(where, "/metrics")[0] == 404
        with ServiceProcess("services.content", place / "r", place / "s", config=config):
            found = eventually(
                lambda: (all_of := shown(where)).get('splitd_service_up{service="content"}') == 1 and all_of,
                "content's metrics are not there",
            )
            assert isinstance(found, dict)
            for service in ("gateway", "content"):
                assert found[f'process_resident_memory_bytes{{service="{service}"}}'] > 1 << 20
                assert found[f'splitd_service_restarts_total{{service="{service}"}}'] == 0
            assert found['splitd_service_up{service="metadata"}'] == 0
            collect = 'grpc_method="Collect",grpc_service="splitd.metrics.v1.Metrics",grpc_type="unary"'
            for name in (
                f'grpc_server_handled_total{{grpc_code="OK",{collect},service="content"}}',
                f'grpc_server_handling_seconds_bucket{{{collect},le="+Inf",service="content"}}',
            ):
                eventually(lambda name=name: shown(where).get(name, 0) >= 1, f"{name} is not there")  # type: ignore[misc]
        gone = eventually(
            lambda: (all_of := shown(where)).get('splitd_service_up{service="content"}') == 0 and all_of,
            "content is still shown as up",
        )
        assert isinstance(gone, dict)
        assert 'process_resident_memory_bytes{service="gateway"}' in gone
        assert 'process_resident_memory_bytes{service="content"}' not in gone
        with ServiceProcess("services.content", place / "r", place / "s", config=config):
            eventually(
                lambda: shown(where).get('splitd_service_restarts_total{service="content"}') == 1,
                "its new start is not counted",
            )
    assert not where.exists()


def test_families_of_several_processes_become_one() -> None:
    """Values of labels are escaped; a second kind of a name is left out."""
    strange = 'a"b\\c\nd'
    text = rendered(
        {
            "images": [Family("used", "Used.", "counter", [Sample(1, {"host": strange}, "_total")])],
            "content": [Family("used", "Used.", "counter", [Sample(2, {"host": "x"}, "_total")])],
            "tasks": [Family("used", "Used.", "gauge", [Sample(3)])],
        }
    ).decode()
    assert text.splitlines() == [
        "# HELP used_total Used.",
        "# TYPE used_total counter",
        'used_total{host="a\\"b\\\\c\\nd",service="images"} 1.0',
        'used_total{host="x",service="content"} 2.0',
    ]
