"""Texts of splitd about a transfer and about images, and the messages that it sends."""

from __future__ import annotations

from typing import Any

import pytest

from deploy import transferring
from deploy.verbs.images import age
from services.images import transfer_convert as convert
from services.images.transfer import Credentials, Progress
from services.oci.descriptors import Descriptor


@pytest.mark.parametrize(
    ("layers", "existing", "said"),
    [
        (0, 0, "0 layers"),
        (1, 0, "1 layer"),
        (1, 1, "1 layer, there already"),
        (5, 0, "5 layers"),
        (5, 2, "5 layers, 2 of them there already"),
        (5, 5, "5 layers, all of them there already"),
    ],
)
def test_layers_are_counted(layers: int, existing: int, said: str) -> None:
    """Existing ones are counted too."""
    assert transferring.layers({"layers": layers, "existing": existing}) == said


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ({"bytes": 0, "seconds": 0.4, "rate": 0.0}, "0 B in 0.4 s"),
        ({"bytes": 3 << 20, "seconds": 2.0, "rate": 1.5 * (1 << 20)}, "3.0 MiB in 2.0 s (1.5 MiB/s)"),
    ],
)
def test_nothing_has_no_rate(outcome: dict[str, Any], said: str) -> None:
    """Bytes, seconds, and bytes a second are formatted."""
    assert transferring.figures(outcome) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "now"),
        (1, "now"),
        (2, "2 seconds ago"),
        (119, "119 seconds ago"),
        (120, "2 minutes ago"),
        (86400, "24 hours ago"),
        (172800, "2 days ago"),
        (10**8, "1157 days ago"),
    ],
)
def test_ages_have_one_unit(seconds: int, said: str) -> None:
    """If the clock was set back, the age is "now"."""
    assert age(seconds * 10**9) == said


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials(),
        Credentials("me", "secret"),
        Credentials("me"),
        Credentials(secret="token"),
        Credentials(header="Bearer x"),
    ],
    ids=str,
)
def test_credentials_arrive_as_they_are(credentials: Credentials) -> None:
    """Each kind has its own message on the wire."""
    assert convert.credentials_from_pb(convert.credentials_to_pb(credentials)) == credentials


@pytest.mark.parametrize(
    "progress",
    [
        Progress("Resolving"),
        Progress("downloading", "layer-x", ("manifest-y",), 3, 4, Descriptor("type", "sha256:aa", 4, {"a": "b"})),
    ],
    ids=str,
)
def test_events_arrive_as_they_are(progress: Progress) -> None:
    """They may have a descriptor or none."""
    assert convert.progress_from_pb(convert.progress_to_pb(progress)) == progress
