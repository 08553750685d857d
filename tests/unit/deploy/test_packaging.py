"""What is installed: every package, and every file in one that is no module."""

from __future__ import annotations

import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from tests.unit.deploy.test_imports import CODE

TOP = Path(__file__).resolve().parents[3]
SETUPTOOLS = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_installed() -> None:
    """Those with code, the messages, and the programs that `splitd new` copies."""
    included = SETUPTOOLS["packages"]["find"]["include"]
    assert set(included) == {f"{name}*" for name in (*CODE, "api", "examples")}


def test_every_other_file_of_a_package_is_installed() -> None:
    """A template or a page that is missing would be noticed only where splitd is installed."""
    listed = subprocess.run(["git", "ls-files", *CODE], cwd=TOP, check=True, capture_output=True, text=True).stdout
    data = SETUPTOOLS["package-data"]
    left = [
        name
        for name in listed.splitlines()
        if not name.endswith((".py", ".pyi"))
        and not any(
            fnmatch(name, f"{package.replace('.', '/')}/{pattern}")
            for package, patterns in data.items()
            for pattern in patterns
        )
    ]
    assert set(left) <= NOT_INSTALLED, left


NOT_INSTALLED = {"deploy/deb", "deploy/machine"}
"""What only a clone needs."""
