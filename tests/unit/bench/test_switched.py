"""How pairs of figures are judged: the ratio, and what it might be by chance."""

from __future__ import annotations

import random

import pytest

from bench.switched import PAIRS, paired


def pairs(seed: int, ratio: float, spread: float, drift: float = 0.0) -> list[tuple[float, float]]:
    """As many pairs as are measured. One figure in eight is 30 % too large, and their level may drift."""
    chance = random.Random(seed)

    def around(figure: float) -> float:
        return figure * chance.uniform(1 - spread, 1 + spread) * (1.3 if chance.random() < 0.125 else 1)

    return [(around(ratio) * (1 + drift * number), around(1.0) * (1 + drift * number)) for number in range(PAIRS)]


@pytest.mark.parametrize("seed", range(10))
def test_six_percent_are_told_from_figures_that_differ_by_ten(seed: int) -> None:
    """A drift of the level, to twice as much, changes nothing."""
    found = paired(pairs(seed, 1.06, 0.05, drift=0.03))
    assert found.ratio == pytest.approx(1.06, abs=0.03)
    assert found.ratio - 1 > found.noise


@pytest.mark.parametrize("seed", range(10))
def test_no_difference_is_within_the_noise(seed: int) -> None:
    """However much the figures differ from pair to pair. The same figures get the same verdict."""
    found = paired(pairs(seed, 1.0, 0.2))
    assert abs(found.ratio - 1) < found.noise
    assert found == paired(pairs(seed, 1.0, 0.2))


def test_equal_figures_have_no_noise() -> None:
    assert paired([(1.0, 1.0)] * PAIRS).noise == 0
