"""The collector's settings, in our table and in containerd's."""

from __future__ import annotations

import tomllib

import pytest

from services.kit import errors, settings
from services.metadata import config as metadata_config
from services.metadata.gc.config import Config, load


def file(text: str) -> settings.File:
    return settings.File("c.toml", tomllib.loads(text))


def test_the_defaults_are_containerds() -> None:
    """As its documentation has them."""
    assert load(file("")) == Config(
        pause_threshold=0.02, deletion_threshold=0, mutation_threshold=100, schedule_delay=0.0, startup_delay=0.1
    )


def test_containerds_table_is_read_and_ours_wins() -> None:
    """A containerd config can stay as it is; keys in [metadata.gc] take precedence."""
    found = load(
        file("""
        [plugins."io.containerd.gc.v1.scheduler"]
        pause_threshold = 0.1
        schedule_delay = "1s"
        startup_delay = "50ms"
        [metadata.gc]
        schedule_delay = "20ms"
    """)
    )
    assert found == Config(pause_threshold=0.1, schedule_delay=0.02, startup_delay=0.05)


def test_values_are_brought_into_containerds_bounds() -> None:
    """Values are clamped silently, as in containerd."""
    assert load(file("[metadata.gc]\npause_threshold = 0.7\nmutation_threshold = -3")) == Config(
        pause_threshold=0.5, mutation_threshold=0
    )


@pytest.mark.parametrize("table", ["metadata.gc", 'plugins."io.containerd.gc.v1.scheduler"'])
def test_a_wrong_value_is_named_with_its_table(table: str) -> None:
    """The message names the table and the key."""
    with pytest.raises(errors.InvalidArgument) as caught:
        load(file(f"[{table}]\nschedule_delay = 5"))
    assert f"[{table}] schedule_delay" in str(caught.value)


def test_the_service_reads_it() -> None:
    """The collector's table is a subtable of [metadata]."""
    assert metadata_config.load(file("[metadata.gc]\ndeletion_threshold = 7")).gc.deletion_threshold == 7
