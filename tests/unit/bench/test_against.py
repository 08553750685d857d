"""The rule by which a build counts as worse than the one before."""

from __future__ import annotations

import random

import pytest

from bench.against import verdict


def figures(seed, around, spread):
    """Return seven figures of a build whose median is about ``around``."""
    chance = random.Random(seed)
    return [around * chance.uniform(1 - spread, 1 + spread) for _ in range(7)]


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.02])
def test_a_difference_below_three_percent_is_not_worse(factor, more):
    """This holds however steady the old build is. A rate is worse when it falls."""
    quiet = [100.0] * 7
    found = verdict([100.0 * (1 / factor if more else factor)] * 7, quiet, quiet, more=more)
    assert not found.worse
    assert found.noise == 0
    assert found.worse_by == pytest.approx(factor - 1)


@pytest.mark.parametrize("more", [False, True])
def test_a_tenth_more_is_worse_where_the_old_build_differs_little_from_itself(more):
    new = figures(1, 1 / 1.1 if more else 1.1, 0.02)
    found = verdict(new, figures(2, 1, 0.02), figures(3, 1, 0.02), more=more)
    assert found.worse
    assert found.worse_by == pytest.approx(0.1, abs=0.03)
    assert found.noise < 0.03


def test_a_tenth_more_is_not_worse_where_the_old_build_differs_as_much_from_itself():
    """The old build may differ from one node to the other, though each is steady, or from one time to the next on
    both.
    """
    assert not verdict([1.1] * 7, [1.0] * 7, [1.12] * 7).worse
    unsteady = [0.8, 1.2] * 3 + [1.0]
    assert not verdict([1.1] * 7, unsteady, unsteady).worse


@pytest.mark.parametrize("seed", range(20))
def test_the_same_build_is_seldom_worse_than_itself(seed):
    """None of twenty such rows with a spread of a fifth is; and the result is the same for the same figures."""
    rows = [figures(3 * seed + n, 1, 0.1) for n in range(3)]
    assert not verdict(*rows).worse
    assert verdict(*rows) == verdict(*rows)


def test_a_row_may_have_another_bound():
    """What tracing may cost a call is more than what it may cost a pull."""
    quiet = [100.0] * 7
    assert not verdict([109.0] * 7, quiet, quiet, bound=0.1).worse
    assert verdict([111.0] * 7, quiet, quiet, bound=0.1).worse
