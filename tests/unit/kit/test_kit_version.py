"""The revision of the running code: the commit by git's files, and the digest of the installed files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from services.kit import version
from tests.support import TOP


def git(top: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", top, "-c", "user.name=x", "-c", "user.email=x@example.com", *words],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    (top / "code").mkdir(parents=True)
    (top / "code/a.py").write_text("a = 1\n")
    git(top, "init", "-q", "-b", "main")
    git(top, "add", ".")
    git(top, "commit", "-q", "-m", "one")
    return top


def test_the_commit_is_what_git_says(checkout: Path, tmp_path: Path) -> None:
    """On a branch, with packed refs, detached, and in a worktree on its own branch; without a checkout there is
    none.
    """
    head = git(checkout, "rev-parse", "HEAD")
    assert version.commit(checkout) == head
    git(checkout, "pack-refs", "--all")
    assert not (checkout / ".git/refs/heads/main").exists()
    assert version.commit(checkout) == head
    git(checkout, "checkout", "-q", "--detach")
    assert version.commit(checkout) == head
    git(checkout, "worktree", "add", "-q", "-b", "other", str(tmp_path / "other"))
    git(tmp_path / "other", "commit", "-q", "--allow-empty", "-m", "two")
    assert version.commit(tmp_path / "other") == git(tmp_path / "other", "rev-parse", "HEAD") != head
    assert version.commit(tmp_path) == ""


def test_an_archive_tells_its_commit(tmp_path: Path) -> None:
    """The output of ``git archive`` has no .git: .gitattributes has the commit filled in."""
    assert version.ARCHIVED == "$Format:%H$"
    assert git(TOP, "check-attr", "export-subst", "services/kit/version.py").endswith(": set")


def test_the_commit_of_an_archive_stands_for_what_git_would_say(tmp_path: Path) -> None:
    """This holds even below another project's checkout."""
    assert version.commit(tmp_path, archived="ab" * 20) == "ab" * 20


def test_the_digest_is_of_names_and_contents(checkout: Path) -> None:
    """A changed byte, name or number of files changes it; the times of files, and files that are no Python, do not."""

    def now() -> str:
        return version.digest(checkout, ("code",))

    seen = [now()]
    (checkout / "code/a.py").touch()
    (checkout / "code/notes.txt").write_text("x")
    assert now() == seen[0]
    (checkout / "code/a.py").write_text("a = 2\n")
    seen.append(now())
    (checkout / "code/a.py").rename(checkout / "code/b.py")
    seen.append(now())
    (checkout / "code/c.py").touch()
    seen.append(now())
    assert len(set(seen)) == 4
    (checkout / "code/c.py").unlink()
    (checkout / "code/b.py").rename(checkout / "code/a.py")
    (checkout / "code/a.py").write_text("a = 1\n")
    assert now() == seen[0]


def test_a_revision_is_the_commit_and_the_digest() -> None:
    """It is that of the running code, with twelve digits and eight."""
    assert version.installed().rpartition(".")[2] == version.digest(
        TOP, ("api", "client", "deploy", "gateway", "services")
    )
    assert version.revision() == version.revision()
