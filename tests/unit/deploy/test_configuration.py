"""The configuration file as a whole: a printed one is read back equal, and errors name file, table and key."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy import configuration
from services.kit import settings


def test_the_default_configuration_is_toml_and_is_the_default(place: Path) -> None:
    """``splitd config default`` is written to a file and loaded: every table has its defaults."""
    path = place / "config.toml"
    path.write_text(configuration.text(settings.File(), comments=True))
    file = settings.read(path)
    for table, cls in configuration.tables():
        assert settings.load(cls, file, table) == cls(), table
    found = configuration.check(path)
    assert not found.errors
    assert not found.warnings


def test_every_table_of_ours_is_printed_with_its_docstring() -> None:
    """So a reader of the default configuration learns the meaning of each table."""
    text = configuration.text(settings.File(), comments=True)
    for table, cls in configuration.tables():
        first = (cls.__doc__ or "").splitlines()[0].replace("``", "")
        assert f"# {first}\n" in text
        assert f"[{table}]\n" in text or not table


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("rot = '/x'", "unknown key rot (known: oom_score, root, state)"),
        ("root = 'x'", "root: 'x' is not an absolute path"),
        ("[contnt]\na = 1", "unknown table [contnt] (known: cgroup, content, fleet, gateway"),
        ("[gateway]\nholt = '5s'", "unknown key [gateway] holt (known: "),
        ("[gateway]\nhold = 5", "[gateway] hold: 5 is not a duration"),
        ("[images.timeouts]\nstall = '0s'", "[images] timeouts: stall must be greater than 0"),
        ("content = 1", "content must be a table: [content]"),
        ("[proxy_plugins.x]\ntype = 'snapshotter'\naddress = '/x'", "[proxy_plugins.x] type: 'snapshotter' is none of"),
        ("[proxy_plugins.x]\ntype = 'snapshot'", "[proxy_plugins.x] address is missing"),
        ("root = ", "Invalid value"),
    ],
)
def test_an_error_names_file_table_and_key(toml: str, said: str, place: Path) -> None:
    """There is only one error, so that nothing is repeated."""
    path = place / "config.toml"
    path.write_text(toml)
    (error,) = configuration.check(path).errors
    assert error.startswith(f"config file {path}: ")
    assert said in error


@pytest.mark.parametrize(
    ("toml", "taken"),
    [
        ("[traces]\naddress = '127.0.0.1:7788'\n[metrics]\naddress = '127.0.0.1:7788'", "[traces]|[metrics]"),
        ("[traces]\naddress = 'localhost:7788'\n[health]\naddress = '127.0.0.1:7788'", "[traces]|[health]"),
        ("[metrics]\naddress = ':1338'\n[health]\naddress = '[::1]:1338'", "[metrics]|[health]"),
        ("[metrics]\naddress = '/x/y.sock'\n[health]\naddress = '/x/./y.sock'", "[metrics]|[health]"),
        (
            "version = 4\n[plugins.'io.containerd.server.v1.metrics']\naddress = '127.0.0.1:1'\n"
            "[health]\naddress = '0.0.0.0:1'",
            "[metrics]|[health]",
        ),
        ("[metrics]\naddress = '127.0.0.1:1338'\n[health]\naddress = '127.0.0.1:1339'", ""),
        ("[metrics]\naddress = '127.0.0.1:1338'\n[health]\naddress = '127.0.0.2:1338'", ""),
        ("[metrics]\naddress = '127.0.0.1:0'\n[health]\naddress = '127.0.0.1:0'", ""),
        ("[metrics]\naddress = '/x/y.sock'\n[health]\naddress = '127.0.0.1:1338'", ""),
    ],
)
def test_two_pages_at_one_address_are_said(toml: str, taken: str, place: Path) -> None:
    """Only one of them could listen there."""
    path = place / "config.toml"
    path.write_text(toml)
    found = configuration.check(path)
    assert not found.errors
    if not taken:
        assert not found.troubles
        return
    (trouble,) = found.troubles
    assert trouble.startswith(f"config file {path}: ")
    assert all(f"{table} address" in trouble for table in taken.split("|"))


def test_all_errors_are_said_at_once(place: Path) -> None:
    """One run of check is enough to repair a file."""
    path = place / "config.toml"
    path.write_text("rot = 1\n[contnt]\n[gateway]\nholt = 1\n")
    assert len(configuration.check(path).errors) == 3


def test_sandbox_controllers_and_their_candidates_are_accepted(place: Path) -> None:
    """A candidate for a controller that is nowhere takes nothing: that is a warning, which names it."""
    path = place / "config.toml"
    path.write_text(
        "[proxy_plugins.mine]\ntype = 'sandbox'\naddress = '/m.sock'\n[services.sandbox.mine]\naddress = '/o.sock'\n"
    )
    found = configuration.check(path)
    assert (found.errors, found.troubles, found.warnings) == ([], [], [])
    with path.open("a") as file:
        file.write("[services.sandbox.shim]\naddress = '/s.sock'\n")
    found = configuration.check(path)
    assert (found.errors, found.troubles) == ([], [])
    (warning,) = found.warnings
    assert "[services.sandbox.shim] takes nothing: no [proxy_plugins.shim] of type sandbox" in warning


def test_containerd_keys_without_meaning_here_are_warnings(place: Path) -> None:
    """A node starts with a configuration from containerd, and its operator sees which keys have no effect."""
    path = place / "config.toml"
    path.write_text(
        "version = 3\ntemp = '/x'\n[debug]\nlevel = 'info'\n[plugins.'io.containerd.grpc.v1.cri']\na = 1\n"
        "[plugins.'io.containerd.gc.v1.scheduler']\npause_threshold = "
        "0.1\n[timeouts]\n'io.containerd.timeout.shim.load' = '9s'\nx = '1s'\n"
    )
    found = configuration.check(path)
    assert not found.errors
    assert found.warnings == [
        f"config file {path}: {what} is containerd's and means nothing here"
        for what in ("temp", "[debug]", '[plugins] "io.containerd.grpc.v1.cri"', '[timeouts] "x"')
    ]
    text = configuration.text(settings.read(path), comments=False)
    assert "pause_threshold = 0.1\n" in text
    assert 'load_timeout = "9s"\n' in text


@pytest.mark.parametrize(
    ("form", "where"),
    [("[grpc]", "[grpc]"), ("[plugins.'io.containerd.server.v1.grpc']", '[plugins."io.containerd.server.v1.grpc"]')],
)
def test_an_address_of_containerds_that_is_not_the_nodes_is_said(form: str, where: str, place: Path) -> None:
    """This holds for both forms of containerd's file; the one of version 4 takes precedence. Empty values, of which
    ``containerd config default`` writes many, cause no message.
    """
    path = place / "config.toml"
    head = "version = 4\nstate = '/x/s'\n" + ("[grpc]\naddress = '/x/old.sock'\n" if form != "[grpc]" else "")
    path.write_text(f"{head}{form}\naddress = '/x/c.sock'\ngid = 0\nmax_recv_message_size = 7\n")
    said = [w for w in configuration.check(path).warnings if where in w]
    assert (
        f"config file {path}: {where} address '/x/c.sock' has no effect: the node listens at containerd.sock in its "
        "state directory, to which a symbolic link there can lead clients"
    ) in said
    assert len(said) == 2  # the other is of max_recv_message_size
    path.write_text(f"{head}{form}\naddress = '/x/s/containerd.sock'\ngid = 0\n")
    assert not any(where in w for w in configuration.check(path).warnings)


@dataclass(frozen=True)
class Inner:
    """Within."""

    deep: settings.Seconds = 0.25
    """Nested."""


@dataclass(frozen=True)
class Sample:
    """A table with every kind of setting."""

    path: Path = Path('/a b/c"d')
    wait: settings.Seconds = 90.0
    """How long.

    In two paragraphs."""
    share: float = 0.5
    count: int = 3
    on: bool = True
    names: tuple[str, ...] = ("a", "ü\n")
    listed: tuple[Inner, ...] = (Inner(), Inner(1.0))
    labels: dict[str, str] = dataclasses.field(default_factory=lambda: {"io.x/y": "z"})
    inner: Inner = Inner()


def test_every_kind_of_value_is_read_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Durations, paths with odd characters, lists, tables in tables."""
    monkeypatch.setattr(configuration, "tables", lambda: iter([("sample", Sample)]))
    text = configuration.text(settings.File(), comments=True)
    values: dict[str, Any] = tomllib.loads(text)
    assert settings.load(Sample, settings.File("text", values), "sample") == Sample()
    assert '# How long.\n#\n# In two paragraphs.\nwait = "1m30s"\n' in text
    assert '[sample.inner]\n# Nested.\ndeep = "250ms"\n' in text


def test_a_socket_of_the_node_itself_is_no_service(tmp_path: Path) -> None:
    """Neither as a candidate nor as a proxy plugin, by whatever path: each call would come back without an end."""
    (tmp_path / "link").symlink_to(tmp_path / "s")
    path = tmp_path / "config.toml"
    path.write_text(
        f'state = "{tmp_path}/s"\n'
        f'[services.content]\naddress = "{tmp_path}/link/containerd.sock"\n'
        f'[proxy_plugins.x]\ntype = "snapshot"\naddress = "unix://{tmp_path}/s/internal.sock"\n'
    )
    found = configuration.check(path).errors
    assert len(found) == 2
    assert "[proxy_plugins.x] address" in found[0]
    assert "[services.content] address" in found[1]
    assert all("a socket of this node itself" in each for each in found)


def test_no_password_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[metadata.etcd]\nendpoints = ["a:1"]\nuser = "u"\ntls = true\npassword = "hunter2"\n')
    for comments in (False, True):
        text = configuration.text(settings.read(path), comments=comments)
        assert 'user = "u"' in text
        assert "# password is set, and not shown" in text
        assert "hunter2" not in text
