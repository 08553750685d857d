"""The page of the traces process."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from services.kit import errors, rpc, settings
from services.traces.config import Config
from services.traces.remote import RemoteStore
from tests.made_traces import pull
from tests.pages import asked
from tests.support import ServiceProcess, eventually, listening

pytestmark = pytest.mark.once


async def test_the_process_serves_the_page_where_the_configuration_says(place: Path) -> None:
    """With what was sent to it, what is under way, and the node's processes, of which this is one."""
    where, config = place / "page.sock", place / "c.toml"
    config.write_text(f'[traces]\naddress = "{where}"\nhosts = ["node7.internal"]\n')
    with ServiceProcess("services.traces", place / "r", place / "s", config=config) as process:
        eventually(lambda: listening(where), "it does not listen")
        assert where.stat().st_mode & 0o777 == 0o600
        assert asked(where, "/")[1].startswith(b"<!doctype html>")
        assert asked(where, "/", "node7.internal")[0] == 200
        assert asked(where, "/", "node8.internal")[0] == 421
        made = pull("a" * 32, time.time_ns() - 60 * 10**9)
        async with rpc.Channel(place / "s/traces.sock", "traces") as channel:
            await RemoteStore(channel).add(made.spans)
        eventually(lambda: asked(where, "/api/traces")[1]["traces"], "the trace is not there")
        assert len(asked(where, "/api/traces/aaaa")[1]["spans"]) == len(made.spans)
        assert asked(where, "/api/live")[1]["operations"] == []
        node = asked(where, "/api/health")[1]
        assert node["trouble"] == "the gateway does not answer"
        (own,) = [each for each in node["processes"] if each["name"] == "traces"]
        assert own["pid"] == process.pid
        assert own["memory"] > 1 << 20
        assert node["store"]["spans"] == len(made.spans)


def test_an_address_that_cannot_be_is_refused() -> None:
    """Before the process starts: `splitd config check` says so."""
    for address in ("localhost", "127.0.0.1:x", "relative/path", ":99999"):
        with pytest.raises(errors.InvalidArgument, match="traces.*address"):
            settings.load(Config, settings.File(tables={"traces": {"address": address}}), "traces")
