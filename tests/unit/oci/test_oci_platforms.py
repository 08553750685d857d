"""Matching of platforms."""

from __future__ import annotations

import pytest

from services.oci import platforms
from services.oci.platforms import Everything, OnlySystem, Ordered, Platform


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        (Platform("Linux", "x86_64"), Platform("linux", "amd64")),
        (Platform("linux", "amd64", "v1"), Platform("linux", "amd64")),
        (Platform("linux", "amd64", "v3"), Platform("linux", "amd64", "v3")),
        (Platform("linux", "aarch64", "v8"), Platform("linux", "arm64")),
        (Platform("linux", "arm64", "8"), Platform("linux", "arm64")),
        (Platform("linux", "arm"), Platform("linux", "arm", "v7")),
        (Platform("linux", "arm", "6"), Platform("linux", "arm", "v6")),
        (Platform("linux", "armhf"), Platform("linux", "arm", "v7")),
        (Platform("linux", "armel"), Platform("linux", "arm", "v6")),
        (Platform("linux", "i386", "x"), Platform("linux", "386")),
        (Platform("macOS", "arm64"), Platform("darwin", "arm64")),
        (Platform("", "riscv64"), Platform("linux", "riscv64")),
        (Platform("linux", "amd64", os_features=("b", "a", "b")), Platform("linux", "amd64", os_features=("a", "b"))),
    ],
    ids=str,
)
def test_spellings_are_one(given: Platform, normal: Platform) -> None:
    assert given.normalized() == normal


def test_an_exact_wish_takes_no_lesser_one() -> None:
    """It does not match 386 for amd64 or another variant, but matches every spelling of itself."""
    wanted = Ordered(Platform("linux", "amd64"))
    assert wanted.matches(Platform("linux", "x86_64", "v1"))
    assert not wanted.matches(Platform("linux", "386"))
    assert not wanted.matches(Platform("linux", "amd64", "v2"))
    assert not wanted.matches(Platform("windows", "amd64"))
    assert not wanted.matches(Platform("unknown", "unknown"))


def test_features_must_be_wanted() -> None:
    assert Ordered(Platform("linux", "amd64", os_features=("erofs", "x"))).matches(
        Platform("linux", "amd64", os_features=("x",))
    )
    assert not Ordered(Platform("linux", "amd64")).matches(Platform("linux", "amd64", os_features=("erofs",)))


def test_windows_versions_match_by_build_where_one_is_wanted() -> None:
    wanted = Ordered(Platform("windows", "amd64", os_version="10.0.17763"))
    assert wanted.matches(Platform("windows", "amd64", os_version="10.0.17763.1397", os_features=("win32k",)))
    assert not wanted.matches(Platform("windows", "amd64", os_version="10.0.20348.1"))
    assert Ordered(Platform("windows", "amd64")).matches(Platform("windows", "amd64", os_version="10.0.20348.1"))


def test_the_order_is_the_wishes_then_the_given_one_and_none_comes_last() -> None:
    found = [
        ("none", None),
        ("arm", Platform("linux", "arm64")),
        ("first", Platform("linux", "amd64")),
        ("other", Platform("linux", "s390x")),
        ("second", Platform("linux", "amd64")),
    ]
    wanted = Ordered(Platform("linux", "amd64"), Platform("linux", "arm64"))
    assert [name for name, _ in platforms.in_order(found, lambda x: x[1], wanted)] == [
        "first",
        "second",
        "arm",
        "other",
        "none",
    ]
    assert platforms.in_order(found[1:], lambda x: x[1], Everything()) == found[1:]


def test_a_system_runs_all_its_architectures_its_own_first() -> None:
    """This is how containerd's transfers unpack: only the operating system counts."""
    system = OnlySystem(Platform("linux", "amd64"))
    assert system.matches(Platform("linux", "s390x"))
    assert not system.matches(Platform("windows", "amd64"))
    assert system.before(Platform("linux", "amd64"), Platform("linux", "s390x"))
    assert not system.before(Platform("windows", "amd64"), Platform("linux", "s390x"))


def test_no_wish_is_every_wish() -> None:
    assert platforms.wanted(()).matches(Platform("plan9", "mips"))
    assert not platforms.wanted([Platform("linux", "amd64")]).matches(Platform("plan9", "mips"))


def test_a_platform_is_written_as_people_write_it() -> None:
    """With the features that tell it from others."""
    given = (Platform("linux", "arm", "v7"), Platform("linux"), Platform(), platforms.parse("linux(+erofs+x)/amd64"))
    assert [str(each) for each in given] == ["linux/arm/v7", "linux", "unknown", "linux(+erofs+x)/amd64"]
    assert platforms.default().os == "linux"


def test_this_machine_runs_images_of_erofs_layers() -> None:
    """Of its system, and of any architecture; not what needs another feature."""
    runs = {
        text: platforms.runs(platforms.parse(text))
        for text in ("linux/s390x", "linux(+erofs)/amd64", "linux(+x)", "windows")
    }
    assert runs == {"linux/s390x": True, "linux(+erofs)/amd64": True, "linux(+x)": False, "windows": False}
