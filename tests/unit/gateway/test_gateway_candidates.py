"""Which new objects a candidate takes, and when it ends by itself."""

from __future__ import annotations

import pytest

from gateway.candidates import LEAST, WINDOW, Candidate, Outcomes, Shares, Terms, capabilities, chosen, named_by
from services.kit import errors


def terms(**more: object) -> Terms:
    return Terms(**{"route": "content", "name": "mine", "address": "/x.sock", **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("percent", [1, 10, 25, 33, 50, 99, 100])
def test_of_each_hundred_a_share_is_taken_exactly_and_the_first_one_is(percent: int) -> None:
    """So a try shows at once, and 10 % are 10 of 100."""
    shares = Shares(float(percent))
    taken = [shares.takes() for _ in range(300)]
    assert taken[0]
    assert [sum(taken[start : start + 100]) for start in (0, 100, 200)] == [percent] * 3


def test_a_candidate_takes_what_its_namespaces_and_its_share_say() -> None:
    """What is of other namespaces does not count for the share."""
    candidate = Candidate(terms(namespaces=("x",), share=50.0))
    found = [(namespace, candidate.wants(namespace)) for _ in range(4) for namespace in ("x", "y")]
    assert [taken for namespace, taken in found if namespace == "x"] == [True, False, True, False]
    assert not any(taken for namespace, taken in found if namespace == "y")


def test_the_candidate_that_was_added_last_is_asked_first() -> None:
    """Draining ones are not asked."""
    first, last = Candidate(terms(name="a")), Candidate(terms(name="b", namespaces=("x",)))
    assert chosen([first, last], "x") is last
    assert chosen([first, last], "y") is first
    last.drain("over")
    assert chosen([first, last], "x") is first
    first.drain("over")
    assert chosen([first, last], "x") is None


def test_it_ends_when_its_time_is_over() -> None:
    """And not again."""
    candidate = Candidate(terms(until=100.0))
    assert not candidate.over(99.0)
    assert candidate.over(100.0) == "its time is over"
    candidate.drain("its time is over")
    candidate.drain("something else")
    assert (candidate.drained, candidate.over(200.0), candidate.wants("x")) == ("its time is over", "", False)


def test_it_ends_when_too_many_of_its_last_calls_failed() -> None:
    """There must be some, and old ones are forgotten."""
    candidate = Candidate(terms(back_at=5.0))
    for _ in range(LEAST - 1):
        candidate.outcomes.note(errors.Internal.code)
    assert not candidate.over(0.0)
    candidate.outcomes.note(errors.Internal.code)
    assert candidate.over(0.0) == "100% of its last calls failed"
    for _ in range(WINDOW - 5):
        candidate.outcomes.note(0)
    assert candidate.over(0.0)
    candidate.outcomes.note(0)
    assert not candidate.over(0.0)
    candidate.renew(terms(back_at=5.0))
    assert candidate.outcomes.calls == 0


@pytest.mark.parametrize("harmless", [errors.NotFound.code, errors.AlreadyExists.code])
def test_ordinary_answers_do_not_count(harmless: int) -> None:
    """Neither as failures nor as successes."""
    outcomes = Outcomes()
    for _ in range(WINDOW):
        outcomes.note(harmless)
    assert (outcomes.calls, outcomes.failed) == (0, 0.0)
    for _ in range(LEAST):
        outcomes.note(errors.Unavailable.code)
        outcomes.note(harmless)
    assert (outcomes.calls, outcomes.failures, outcomes.failed) == (LEAST, LEAST, 100.0)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/run/soci/snapshotter.sock", "snapshotter"),
        ("unix:///run/My Store.sock", "my-store"),
        ("unix:/run/x.sock", "x"),
        ("10.0.0.1:8080", "10.0.0.1-8080"),
        ("store.example:443", "store.example-443"),
        ("[::1]:80", "1-80"),
    ],
)
def test_a_candidate_is_named_by_its_address(address: str, name: str) -> None:
    """By its socket's stem, or by host and port."""
    assert named_by(address) == name
    terms(name=name, address=address).check()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "Mine"}, "a name has 1 to 64 of the characters"),
        ({"name": "x" * 65}, "a name has 1 to 64 of the characters"),
        ({"address": ""}, "address: '' is neither /path nor"),
        ({"address": "host"}, "address: 'host' is neither /path nor unix:///path of a socket, nor HOST:PORT"),
        ({"tls": True}, "TLS is for TCP, and /x.sock is a unix socket"),
        ({"share": 0.0}, "share 0%: it is more than 0% and at most 100%"),
        ({"share": 101.0}, "at most 100%"),
        ({"share": float("nan")}, "at most 100%"),
        ({"back_at": 101.0}, "at most 100%"),
        ({"namespaces": ("a b",)}, "namespace 'a b'"),
        ({"route": "images", "share": 50.0}, "images takes no share: the streams of a transfer"),
        ({"route": "metadata", "share": 50.0}, "metadata takes no share: nobody else has its records"),
        ({"route": "metadata", "namespaces": ("x",)}, "metadata takes no namespaces"),
        ({"route": "nothing"}, "route nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(wrong: dict[str, object], words: str) -> None:
    """The error names it."""
    with pytest.raises(errors.InvalidArgument, match=words):
        terms(**wrong).check()


def test_clients_may_use_what_all_backends_have() -> None:
    """Not rebase where a layer's snapshot and its parent's might be in different ones."""
    home = ("remap-ids", "rebase")

    def of(*candidates: Candidate) -> tuple[str, ...]:
        return capabilities(home, candidates)

    able = {"route": "snapshots.overlayfs", "capabilities": ("rebase", "remap-ids")}
    assert of() == home
    assert of(Candidate(terms(**able))) == ("rebase", "remap-ids")
    assert of(Candidate(terms(**able, share=50.0))) == ("remap-ids",)
    assert of(Candidate(terms(route="snapshots.overlayfs", share=50.0))) == ()
    assert of(Candidate(terms(route="snapshots.overlayfs", share=50.0), drained="over")) == home
