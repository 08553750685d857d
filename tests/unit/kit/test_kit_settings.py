"""The configuration file: one TOML file for the node, and errors that name file, table and key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from services.kit import errors, settings
from services.kit.settings import Seconds


@dataclass(frozen=True)
class Sub:
    count: int = 1


@dataclass(frozen=True)
class Config:
    size: int = 3
    wait: Seconds = 0.1
    where: Path = Path("/x")
    names: tuple[str, ...] = ()
    policy: Literal["shared", "isolated"] = "shared"
    subs: dict[str, Sub] | None = None
    on: bool = False


def config(tmp_path: Path, text: str, table: str = "content", **flags: object) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return settings.load(Config, settings.read(path), table, **flags)


def test_defaults_then_file_then_flags(tmp_path: Path) -> None:
    """A flag takes precedence over the file, the file over the default; None counts as no flag."""
    assert config(tmp_path, "[content]\nsize = 5\nwait = '1m30s'\nnames=['a']", size=None) == Config(
        size=5, wait=90.0, names=("a",)
    )
    assert config(tmp_path, "[content]\nsize = 5", size=7).size == 7
    assert settings.load(Config, settings.read(None), "content") == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[content]\nsiez = 5", "[content] siez"),
        ("[content]\nsize = 'x'", "[content] size: 'x' is not a whole number"),
        ("[content]\nsize = true", "[content] size: True is not a whole number"),
        ("[content]\nwait = '5 apples'", "[content] wait: '5 apples' is not a duration"),
        ("[content]\nwait = 5", "[content] wait: 5 is not a duration"),
        ("[content]\nwhere = 'relative'", "[content] where: 'relative' is not an absolute path"),
        ("[content]\npolicy = 'none'", "[content] policy: 'none' is none of 'shared', 'isolated'"),
        ("[content]\nnames = [1]", "[content] names: 1 is not a string"),
        ("content = 3", "content is not a table"),
        ("[content\n", "Expected"),
    ],
)
def test_a_mistake_names_file_table_and_key(tmp_path: Path, text: str, words: str) -> None:
    """So an operator sees where the mistake is."""
    with pytest.raises(errors.InvalidArgument) as caught:
        config(tmp_path, text)
    assert str(tmp_path / "config.toml") in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["9" * 400 + "h", "3000000h", "1" * 30 + "s"])
def test_a_duration_beyond_gos_is_refused(text: str) -> None:
    """Go's have 64 bits of nanoseconds. What is longer would end in an OverflowError somewhere else."""
    with pytest.raises(ValueError, match="more than the longest duration, 2562048h"):
        settings.parse_duration(text)


def test_a_file_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(errors.InvalidArgument, match="config.toml: it is nested too deeply"):
        settings.read(path)


def test_an_absent_file_is_an_error_that_names_it() -> None:
    """A file that was named explicitly and is missing is not replaced by defaults."""
    with pytest.raises(errors.InvalidArgument, match="/no/such.toml: No such file"):
        settings.read(Path("/no/such.toml"))


def test_the_top_level_takes_containerds_keys(tmp_path: Path) -> None:
    """version and other keys of a containerd config.toml are accepted; a misspelt root is an error."""
    path = tmp_path / "c.toml"
    path.write_text("version = 2\nroot = '/r'\n[grpc]\naddress='/a'\n")
    assert settings.load(settings.Node, settings.read(path), "").root == Path("/r")
    path.write_text("roott = '/r'\n")
    with pytest.raises(errors.InvalidArgument, match="unknown key roott"):
        settings.load(settings.Node, settings.read(path), "")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("100ms", 0.1),
        ("5s", 5.0),
        ("1m30s", 90.0),
        ("2h", 7200.0),
        ("0", 0.0),
        ("1.5s", 1.5),
        ("0s", 0.0),
        ("1h0m1s", 3601.0),
    ],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    """Durations are written as containerd's users write them; a printed one is read back equal."""
    assert settings.parse_duration(text) == pytest.approx(seconds)
    assert settings.parse_duration(settings.format_duration(seconds)) == pytest.approx(seconds)


@dataclass(frozen=True)
class Checked:
    address: str
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count: {self.count} is less than 1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[proxy]\ncount = 2", r"\[proxy\] address is missing"),
        ("[proxy]\naddress = '/a'\ncount = 0", r"\[proxy\] count: 0 is less than 1"),
    ],
)
def test_errors_name_missing_and_forbidden_keys(tmp_path: Path, text: str, words: str) -> None:
    """Such errors are a missing key, and a value that the class itself refuses."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(errors.InvalidArgument, match=words):
        settings.load(Checked, settings.read(path), "proxy")
