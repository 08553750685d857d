"""A library that is loaded at its first use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.kit import later
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


PROGRAM = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from services.kit import later

code = later.Code("a_package", "alone.py", top=os.getcwd())
for path in Path().rglob("*.py"):
    path.write_text("raise RuntimeError('of another release')")
import alone, a_package.inner.module as module
assert (alone.NAME, module.NAME) == ("alone", "module")
assert module.__file__ == f"{os.getcwd()}/a_package/inner/module.py"
assert sys.modules["a_package.inner"].__path__ == [f"{os.getcwd()}/a_package/inner"]
code.close()
assert code not in sys.meta_path
print("done")
"""


@pytest.mark.parametrize("compiled", ["", "timestamp", "unchecked-hash"])
def test_code_of_ours_is_loaded_as_it_was_when_it_was_kept(compiled: str, tmp_path: Path) -> None:
    """Whatever the files are since, and however they were compiled."""
    for file in ("a_package/__init__", "a_package/inner/__init__", "a_package/inner/module", "alone"):
        (path := tmp_path / f"{file}.py").parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"NAME = {path.stem!r}\n")
    if compiled:
        compileall = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", compiled, "."]
        subprocess.run(compileall, cwd=tmp_path, check=True, timeout=60)
    places = os.pathsep.join((str(tmp_path), str(TOP)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": places},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "done\n"


def test_what_is_loaded_is_not_kept() -> None:
    """It is not loaded again."""
    code = later.Code("services/kit/later.py", "services/kit/buckets.py")
    try:
        assert code.find_spec("services.kit.later", None) is None
    finally:
        code.close()


class Greeter:
    """Answers two kinds of calls."""

    async def Say(self, request: str, call: Any) -> str:
        return f"{request} {call}"

    async def Repeat(self, request: str, call: Any) -> AsyncIterator[str]:
        for _ in range(call):
            yield request


async def test_a_servicer_is_made_for_its_first_call() -> None:
    """It is one servicer, whatever its methods answer with."""
    made: list[Greeter] = []

    def make() -> Greeter:
        made.append(Greeter())
        return made[-1]

    servicer = later.Servicer(SimpleNamespace(methods_by_name={"Say": 1, "Repeat": 2}), make)
    say, repeat = servicer.Say, servicer.Repeat
    assert not made
    assert await say("hello", "you") == "hello you"
    assert [each async for each in repeat("again", 2)] == ["again", "again"]
    assert made == [servicer.made()]
    assert not hasattr(servicer, "DECODERS")
