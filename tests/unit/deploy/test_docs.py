"""The README and the docs name only existing things."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from deploy.verbs import VERBS

TOP = Path(__file__).resolve().parents[3]
DOCUMENTS = [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(TOP).as_posix())
def test_links_lead_to_files_that_are_in_the_repository(document: Path) -> None:
    """Relative links are resolved from the document's place."""
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


def test_the_messages_that_damaged_database_md_quotes_are_in_the_source() -> None:
    """Each part of a quoted message between its placeholders is checked; SQLite's own words are not."""
    table = re.findall(r"^\| (.*?) \| [A-Z]", (TOP / "docs/damaged-database.md").read_text(), re.MULTILINE)
    quoted = [quote for row in table for quote in re.findall(r"`([^`]+)`", row)]
    parts = [
        part
        for quote in quoted
        for part in re.split(r"\s*\.\.\.\s*|ROOT/|NAME|\bN\b|frame|metadata\.db", quote)
        if len(part.split()) > 2 and "file is not a database" not in part
    ]
    assert len(parts) >= 8
    left = {part.strip() for part in parts}
    for path in (path for name in ("services", "gateway") for path in (TOP / name).rglob("*.py")):
        source = path.read_text()
        if any(max(part.split(), key=len) in source for part in left):  # to parse all of them takes seconds
            literals = _literals(source)
            left = {part for part in left if part not in literals}
    assert not left


def _literals(source: str) -> str:
    """Return the strings of a source; of those with placeholders, the parts between them."""
    tree = ast.parse(source)
    return "\n".join(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
