"""Helpers that the tasks of a service share."""

from __future__ import annotations

import os

import pytest

from services.kit import errors
from services.tasks.service import prefixed


def test_system_errors_have_gos_words() -> None:
    """The words follow the failed action and have the path; an error of ours keeps its class."""
    with pytest.raises(errors.Unknown) as caught, prefixed("failed to start shim: "):
        os.stat("/Absent/program")
    assert str(caught.value) == "failed to start shim: /Absent/program: no such file or directory"
    with (
        pytest.raises(errors.NotFound, match="^failed to delete task: task a: not found$"),
        prefixed("failed to delete task: "),
    ):
        raise errors.NotFound("task a")
