"""The settings of the metadata service."""

from __future__ import annotations

import tomllib

import pytest

from services.kit import errors, settings
from services.metadata.config import foreign, load


def file(text: str) -> settings.File:
    return settings.File("config.toml", tomllib.loads(text))


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", "shared"),
        ('[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "isolated"\n', "isolated"),
        ('[metadata]\ncontent_sharing_policy = "isolated"\n', "isolated"),
        (
            (
                "[metadata]\ncontent_sharing_policy = "
                '"shared"\n[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "isolated"\n'
            ),
            "shared",
        ),
    ],
)
def test_the_sharing_policy_is_ours_or_containerds(text: str, policy: str) -> None:
    """Our own setting takes precedence if both are there."""
    assert load(file(text)).content_sharing_policy == policy


@pytest.mark.parametrize(
    "text",
    [
        '[metadata]\ncontent_sharing_policy = "maybe"\n',
        '[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "maybe"\n',
        "[metadata]\nnonsense = 1\n",
    ],
)
def test_mistakes_are_named(text: str) -> None:
    """The message names the file and the key."""
    with pytest.raises(errors.InvalidArgument, match=r"config file config.toml: .*(content_sharing_policy|nonsense)"):
        load(file(text))


def test_which_backends_are_other_peoples() -> None:
    """Backends of proxy plugins are foreign, and so is a content store in the place of ours. An entry that is invalid
    is refused by the gateway, not here.
    """
    found = foreign(
        file(
            'proxy_plugins.odd = 1\n[proxy_plugins.stargz]\ntype = "snapshot"\n[proxy_plugins.far]\ntype = '
            '"content"\n[proxy_plugins.d]\ntype = "diff"\n'
        )
    )
    assert found == {"snapshots.stargz", "content"}
    assert foreign(file("")) == foreign(file("proxy_plugins = 1\n")) == frozenset()
