"""What the daemons of the benchmark run on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import peers


def test_a_node_is_measured_with_the_python_of_its_package(tmp_path: Path) -> None:
    """Debian's Python in the same version, with the modules of the environment that the benchmark runs in."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not Path("/usr/bin", name).exists():
        pytest.skip(f"no /usr/bin/{name}")
    code = "import sys, uvloop; print(sys.base_prefix, uvloop.__file__)"
    python = peers.delivered(sys.executable, tmp_path / "python")
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    here = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told == ["/usr", here[1]]
    assert peers.delivered(python, tmp_path / "again") == python
