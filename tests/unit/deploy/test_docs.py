"""The README and the docs name only what is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from deploy.verbs import VERBS

TOP = Path(__file__).resolve().parents[3]
DOCUMENTS = [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(TOP).as_posix())
def test_links_lead_to_files_that_are_in_the_repository(document: Path) -> None:
    """Relative links, from where the document is."""
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()) if "://" not in target]
    missing = [
        target
        for target in targets
        if not any((document.parent / target).glob("**/*")) and not (document.parent / target).is_file()
    ]
    assert not missing


@pytest.mark.parametrize("document", ["README.md", "docs/operating.md"])
def test_the_targets_and_verbs_that_a_document_names_exist(document: str) -> None:
    """Each ``make X`` is in ``make help``, each ``splitd X`` is a verb."""
    text = (TOP / document).read_text()
    shown = subprocess.run(["make", "help"], cwd=TOP, check=True, capture_output=True, text=True).stdout
    targets = set(re.findall(r"make ([a-z][a-z-]+)", shown))
    assert set(re.findall(r"(?:`|^)make ([a-z][a-z-]+)", text, re.MULTILINE)) <= targets
    assert set(re.findall(r"(?:`|^)splitd ([a-z]+)", text, re.MULTILINE)) <= set(VERBS)
