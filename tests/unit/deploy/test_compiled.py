"""The modules of a node are compiled before supervisord loads them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy import compiled


def test_what_is_not_compiled_or_has_changed_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all is compiled, no process is started."""
    for name in compiled.CODE:
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "module.py").write_text("A = 1\n")
    began: list[Any] = []
    run = subprocess.run

    def noted(*arguments: Any, **named: Any) -> Any:
        began.append(arguments)
        return run(*arguments, **named)

    monkeypatch.setattr(subprocess, "run", noted)
    compiled.ready(tmp_path)
    assert len([*tmp_path.rglob("*.pyc")]) == len(compiled.CODE)
    compiled.ready(tmp_path)
    assert len(began) == 1
    module = tmp_path / "services" / "inner" / "module.py"
    module.write_text("A = 2\n")
    later = module.stat().st_mtime + 10
    os.utime(module, (later, later))
    compiled.ready(tmp_path)
    assert len(began) == 2


def test_wrong_code_is_left_to_whoever_loads_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its process says what is wrong, in its own log."""
    for name in compiled.CODE:
        (tmp_path / name).mkdir()
    (tmp_path / "gateway" / "module.py").write_text("A = \n")
    compiled.ready(tmp_path)
    assert capfd.readouterr() == ("", "")
