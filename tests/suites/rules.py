"""A suite of tests made of rules (conform/): each rule is a test of the same name, on every life of the interface."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import pytest

from conform.rules import Case, NotOffered, NotRun, Rule

C = TypeVar("C", bound=type)


def of(*rules: Iterable[Rule]) -> Callable[[C], C]:
    """A class decorator that adds a test for each rule. The class has a fixture ``case``, which the rule gets."""

    def add(suite: C) -> C:
        for each in (rule for some in rules for rule in some):
            setattr(suite, f"test_{each.name}", _test(each))
        return suite

    return add


def _test(rule: Rule) -> Callable[[Any, Case], Awaitable[None]]:
    async def test(self: Any, case: Case) -> None:
        try:
            await rule.run(case)
        except (NotOffered, NotRun) as outcome:
            pytest.skip(str(outcome))

    test.__name__, test.__doc__ = f"test_{rule.name}", rule.promise
    if rule.mounts:
        test.mounts = True  # type: ignore[attr-defined]
    return test
