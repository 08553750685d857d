"""The rules as a table, and the words in which they fail."""

from __future__ import annotations

import pytest

from conform.rules import Broken, Case, NoAnswer, NotOffered, equal, shown
from conform.running import RULES
from services.kit import errors


@pytest.mark.parametrize("kind", RULES)
def test_every_rule_has_a_name_a_promise_and_a_source(kind: str) -> None:
    """Names are unique, so that one can be chosen by its name."""
    titles = [rule.title for rule in RULES[kind]]
    assert len(titles) == len(set(titles)) > 30
    for rule in RULES[kind]:
        assert rule.promise.endswith("."), rule.name
        assert len(rule.source) > 10, rule.name


def test_what_differs_is_said_as_expected_and_came() -> None:
    with pytest.raises(Broken) as caught:
        equal(b"x" * 5000, "text", "the bytes")
    assert str(caught.value).startswith("the bytes: expected text; came 5000 bytes beginning with b'xxxx")
    assert len(shown(["x" * 5000])) < 310


def test_a_refusal_has_the_right_code() -> None:
    """OK, and another code, are not a refusal with this one; nor is a process that hangs or dies, whatever code it
    would have.
    """
    case = Case()
    with case.refused(errors.NotFound) as found:
        raise errors.NotFound("x")
    assert str(found.error) == "x: not found"
    with pytest.raises(Broken, match="expected NOT_FOUND; came OK"), case.refused(errors.NotFound):
        pass
    with pytest.raises(Broken, match="expected NOT_FOUND; came ALREADY_EXISTS: x"), case.refused(errors.NotFound):
        raise errors.AlreadyExists("x")
    with pytest.raises(Broken, match="expected UNAVAILABLE; came gone"), case.refused(errors.Unavailable):
        raise errors.Disconnected.verbatim("gone")
    with pytest.raises(Broken, match="expected an error; came no answer"), case.refused(errors.NodeError):
        raise NoAnswer.verbatim("no answer")


def test_words_are_optional_of_strangers() -> None:
    """Of ours they are promised, unless a test says that they are lacking."""
    stranger = Case()
    with stranger.refused(errors.NotFound, "^not this$"):
        raise errors.NotFound("x")
    assert stranger.notes == [
        "containerd's words: expected a message that matches /^not this$/; came NOT_FOUND: x: not found"
    ]
    ours = Case(strict=True)
    with pytest.raises(Broken, match="not this"), ours.refused(errors.NotFound, "^not this$"):
        raise errors.NotFound("x")
    lacking = Case(strict=True, lacks=frozenset({"containerd's words"}))
    with lacking.refused(errors.NotFound, "^not this$"):
        raise errors.NotFound("x")


def test_what_is_optional_and_wrong_is_not_offered() -> None:
    """It is broken where it is promised."""
    with pytest.raises(NotOffered, match="a thing: expected 2; came 1"), Case().offered("a thing"):
        equal(1, 2)
    with pytest.raises(Broken), Case(strict=True).offered("a thing"):
        equal(1, 2)
