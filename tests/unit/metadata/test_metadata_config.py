"""The settings of the metadata service."""

from __future__ import annotations

import tomllib

import pytest

from services.kit import errors, settings
from services.metadata.config import load


def file(text: str) -> settings.File:
    return settings.File("config.toml", tomllib.loads(text))


@pytest.mark.parametrize(("text", "policy"), [
    ("", "shared"),
    ('[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "isolated"\n', "isolated"),
    ('[metadata]\ncontent_sharing_policy = "isolated"\n', "isolated"),
    ('[metadata]\ncontent_sharing_policy = "shared"\n[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "isolated"\n', "shared"),
])
def test_the_sharing_policy_is_ours_or_containerds(text: str, policy: str) -> None:
    """Ours counts where both are there."""
    assert load(file(text)).content_sharing_policy == policy


@pytest.mark.parametrize("text", [
    '[metadata]\ncontent_sharing_policy = "maybe"\n',
    '[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "maybe"\n',
    "[metadata]\nnonsense = 1\n",
])
def test_mistakes_are_named(text: str) -> None:
    """With the file and the key."""
    with pytest.raises(errors.InvalidArgument, match=r"config file config.toml: .*(content_sharing_policy|nonsense)"):
        load(file(text))
