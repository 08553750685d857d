"""The table of errors: every gRPC code, in both directions, in containerd's words."""

from __future__ import annotations

import os

import pytest

from services.kit import errors


def test_every_code_but_ok_has_one_class() -> None:
    """gRPC's codes 1 to 16 have exactly one class each, so that mapping there and back loses nothing."""
    assert sorted(errors.BY_CODE) == list(range(1, 17))
    assert len(set(errors.BY_CODE.values())) == 16


@pytest.mark.parametrize("code", range(1, 17))
def test_a_status_becomes_its_class_with_the_message_unchanged(code: int) -> None:
    """The message of another process is passed on word for word."""
    error = errors.from_status(code, "task acc-1: something odd", (("k", "v"),))
    assert (error.code, str(error), error.trailers) == (code, "task acc-1: something odd", (("k", "v"),))


def test_an_unknown_code_is_unknown() -> None:
    """A code that gRPC does not define does not crash its receiver."""
    assert type(errors.from_status(77, "x")) is errors.Unknown


def test_messages_end_in_containerds_words_once() -> None:
    """Clients match on the suffix; the raiser names the thing."""
    assert str(errors.NotFound("content sha256:abc")) == "content sha256:abc: not found"
    assert str(errors.NotFound("content sha256:abc: not found")) == "content sha256:abc: not found"
    assert str(errors.FailedPrecondition("namespace is required")) == "namespace is required: failed precondition"
    assert str(errors.Internal("disk on fire")) == "disk on fire"


def test_a_lost_connection_is_unavailable_on_the_wire() -> None:
    """Disconnected is used only between our own processes."""
    assert errors.Disconnected("service content").code == 14
    assert errors.BY_CODE[14] is errors.Unavailable


def test_a_failed_system_call_in_gos_words() -> None:
    """The words have no number as Python's have, and the path if it is wanted; words of other libraries keep their
    letters.
    """
    with pytest.raises(OSError, match="No such file") as caught:
        os.stat("/Absent/file")
    assert errors.words(caught.value) == "no such file or directory"
    assert errors.words_of_path(caught.value) == "/Absent/file: no such file or directory"
    assert (
        errors.words(OSError("Not of the System"))
        == errors.words_of_path(OSError("Not of the System"))
        == "not of the System"
    )
    assert errors.words_of_path(OSError(5, "Input/output error", b"/a\xff")) == "/a\\xff: input/output error"
