"""A library that is loaded at its first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.kit.later import Library
from tests.support import TOP


def test_it_is_loaded_when_something_of_it_is_used() -> None:
    code = (
        "import sys; from services.kit.later import Library; it = Library('colorsys'); assert 'colorsys' not in "
        "sys.modules; assert it.rgb_to_hsv(0, 0, 0) == (0, 0, 0); assert it.rgb_to_hsv is "
        "sys.modules['colorsys'].rgb_to_hsv"
    )
    subprocess.run([sys.executable, "-c", code], cwd=TOP, check=True, timeout=60)


def test_what_it_lacks_is_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="module 'colorsys' has no attribute 'no_such'"):
        _ = Library("colorsys").no_such
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        _ = Library("no_such_library").anything
