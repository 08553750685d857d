"""Diff.Apply compared with containerd's: both make the same tree of the same layer, or both refuse it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from tests.suites import diff_layers
from tests.suites.diff_sides import Node, Side, bind, differences, outcome, overlay, tree
from tests.suites.diff_tars import Case

pytestmark = [pytest.mark.root, pytest.mark.once]


async def unpacked(side: Side, case: Case, target: str) -> tuple[str, Any, dict[bytes, Node]]:
    """Apply a case's layer to a target of one kind; return the outcome, and the tree if the layer was accepted."""
    root = side.directory(target)
    if target == "plain":
        if case.lower:
            await side.apply(case.lower, bind(root))
        mounts = bind(root)
    else:
        lower, work = side.directory(target + "-lower"), side.directory(target + "-work")
        if case.lower:
            await side.apply(case.lower, bind(lower))
        mounts = overlay(root, work, lower)
    verdict, result = await outcome(side.apply(case.layer, mounts))
    return verdict, result, tree(root) if verdict == "ok" else {}


@pytest.mark.parametrize("case", diff_layers.ALL, ids=lambda case: case.name)
async def test_a_layer_becomes_what_containerd_makes_of_it(case: Case, sides: tuple[Side, Side], place: Path) -> None:
    """Each layer is accepted or refused as by containerd, gives the same tree on a plain directory and on an overlay,
    and the same diff id. Nothing outside the tree is touched.
    """
    for target in case.targets:
        one, other = await asyncio.gather(*(unpacked(side, case, target) for side in sides))
        if case.differs:
            assert one[0] == "ok"
            continue
        assert one[0] == other[0], f"on {target}: ours {one[1]}, containerd's {other[1]}"
        if one[0] == "ok":
            assert one[1] == other[1]
            assert one[1].digest == f"sha256:{hashlib.sha256(case.layer).hexdigest()}"
            assert not differences(one[2], other[2])
        else:
            assert type(one[1]) is type(other[1])
    assert sorted(os.listdir(place)) == ["ours", "theirs"]
    assert sorted(os.listdir(place / "ours")) == sorted(os.listdir(place / "theirs"))


@pytest.mark.parametrize("seed", range(60))
async def test_random_layers_become_what_containerd_makes_of_them(
    seed: int, sides: tuple[Side, Side], place: Path
) -> None:
    """Entries of all kinds under few names give the same tree as in containerd."""
    case = diff_layers.shuffled(seed)
    lowers = [await outcome(side.apply(case.lower, bind(side.directory("probe")))) for side in sides]
    assert lowers[0][0] == lowers[1][0]
    if lowers[0][0] == "refused":
        case = Case(case.name, case.layer)
    for target in case.targets:
        one, other = await asyncio.gather(*(unpacked(side, case, target) for side in sides))
        assert one[0] == other[0], f"on {target}: ours {one[1]}, containerd's {other[1]}"
        assert not differences(one[2], other[2]), f"{target} seed {seed}"
