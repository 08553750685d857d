"""The settings of the traces service that only it can judge."""

from __future__ import annotations

import pytest

from services.traces.config import Config


@pytest.mark.parametrize("host", ["", "proxy.example:80", "https://proxy.example", "[::1]", "two names"])
def test_a_host_that_no_browser_sends_is_refused(host: str) -> None:
    """It would never match, and the page would only answer 421."""
    with pytest.raises(ValueError, match="is no name: say it without scheme, port and brackets"):
        Config(hosts=("good", host))


def test_names_and_addresses_are_hosts() -> None:
    assert Config(hosts=("Proxy.example", "10.0.0.1", "fd00::1")).hosts
