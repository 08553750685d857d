"""The gateway's record of the snapshots service's announcement."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import announced
from services.snapshots.store import About

ABOUTS = (
    About("overlayfs", (), {"root": "/r/snapshots/overlayfs"}, ("rebase",)),
    About("odd", ("linux/arm/v7",), {}, (), "no such module"),
    About("lost", trouble="its records are damaged", broken=True),
)


def test_an_announcement_is_kept(tmp_path: Path) -> None:
    """The newest announcement is kept completely."""
    (tmp_path / "gateway").mkdir()
    announced.keep(tmp_path, ABOUTS[:1])
    announced.keep(tmp_path, ABOUTS)
    assert announced.kept(tmp_path) == ABOUTS


def test_fields_that_earlier_releases_do_not_send(tmp_path: Path) -> None:
    """Missing fields mean that nothing is wrong with the snapshotter."""
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway/snapshotters.json").write_text(
        '[{"name": "a", "platforms": [], "exports": {}, "capabilities": [], "trouble": "x"}]'
    )
    assert announced.kept(tmp_path) == (About("a", trouble="x"),)


def test_before_the_first_announcement_stores_tell_which_there_are(tmp_path: Path) -> None:
    """This is the case after an upgrade from a release that kept no announcement; other directories are not taken for
    snapshotters.
    """
    assert announced.kept(tmp_path) == ()
    for name in ("native", "diff"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
    (tmp_path / "snapshots/native/metadata.db").touch()
    assert announced.kept(tmp_path) == (About("native", exports={"root": f"{tmp_path}/snapshots/native"}),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "[{}]",
        '[{"name": 1}]',
        '[{"name": "a", "platforms": [1], "exports": {}, "capabilities": [], "trouble": ""}]',
        " " * (2 << 20),
    ],
)
def test_a_damaged_announcement_is_replaced(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """The gateway starts nevertheless, and the log says so."""
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway/snapshotters.json").write_text(text)
    assert announced.kept(tmp_path) == ()
    assert "snapshotters.json does not hold an announcement" in caplog.text
