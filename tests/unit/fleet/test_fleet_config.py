"""The tables [fleet] and [fleet.etcd], and what they mean for the processes of a node."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from deploy import configuration, reconcile, supervision
from deploy.place import Place
from deploy.processes import NAMES, named, of
from services.fleet.config import Config
from services.kit import settings
from tests.fake_registry import Authority

ETCD = '[fleet.etcd]\nendpoints = ["etcd1:2379"]\n'
FILES = 'ca = "/x/ca.pem"\ncert = "/x/cert.pem"\n'


def read(text: str, place: Path) -> settings.File:
    path = place / "config.toml"
    path.write_text(text)
    return settings.read(path)


def test_a_fleet_as_most_write_it(place: Path) -> None:
    """What is not said: the host's name, the namespace default, no limit, and that of etcd's prefix."""
    file = read(f'[fleet]\nlisten = "node7:7790"\n{FILES}{ETCD}', place)
    config = settings.load(Config, file, "fleet")
    assert (config.node, config.advertised) == (socket.gethostname(), "node7:7790")
    assert (config.namespaces, config.upload, config.etcd.prefix) == (("default",), 0, "/splitd/fleet")
    assert [process.name for process in of(file)] == [*NAMES, "fleet"]


@pytest.mark.parametrize(
    "text", ["", "[fleet]\n", "fleet = 1\n", "[fleet]\netcd = 1\n", "[fleet.etcd]\nendpoints = []\n"]
)
def test_a_node_without_a_fleet_has_no_process(text: str, place: Path) -> None:
    """Also one whose table is empty, or wrong: that is told elsewhere."""
    assert [process.name for process in of(read(text, place))] == list(NAMES)


@pytest.mark.parametrize(
    ("fleet", "said"),
    [
        (f'listen = "x:1"\n{FILES}', '[fleet.etcd] endpoints = ["HOST:PORT", ...]'),
        (f'name = "a b"\n{FILES}{ETCD}', 'name: identifier "a b" must match'),
        (f'listen = "x:1"\n{ETCD}', "ca: nodes give each other blobs over mTLS"),
        (f'listen = "x:1"\nca = "/x"\n{ETCD}', "cert: nodes give each other blobs over mTLS"),
        (f'listen = "x:1"\nca = "x"\ncert = "/c"\n{ETCD}', "ca: 'x' is not an absolute path"),
        (f'listen = ":7790"\n{FILES}{ETCD}', "advertise: listen = ':7790' names no host"),
        (f'listen = "0.0.0.0:7790"\n{FILES}{ETCD}', "advertise: listen = '0.0.0.0:7790' names no host"),
        (f'listen = "x"\n{FILES}{ETCD}', "listen: 'x' is not HOST:PORT"),
        (f'listen = "x:0"\n{FILES}{ETCD}', "listen: 'x:0' is not HOST:PORT"),
        (f'listen = "/x.sock"\n{FILES}{ETCD}', "listen: '/x.sock' is not HOST:PORT"),
        (f'listen = "x:1"\nadvertise = "https://x:1"\n{FILES}{ETCD}', "advertise: 'https://x:1' is not HOST:PORT"),
        (f'advertise = "x:1"\n{FILES}{ETCD}', "advertise: there is no listen to it"),
        (f"upload = 100\n{FILES}{ETCD}", "upload: 100 is less than 65536"),
        (f"upload = -1\n{FILES}{ETCD}", "upload: -1 is less than 65536"),
        (f"namespaces = []\n{FILES}{ETCD}", "namespaces: there must be 1 to 64"),
        (f'namespaces = ["a b"]\n{FILES}{ETCD}', 'namespaces: identifier "a b" must match'),
        (f'{FILES}[fleet.etcd]\nendpoints = ["etcd1"]\n', "endpoints: 'etcd1' is neither"),
        (f"peer = true\n{FILES}{ETCD}", "unknown key [fleet] peer (known: advertise, ca, cert"),
    ],
)
def test_what_makes_no_sense_is_said_once_and_in_words(fleet: str, said: str, place: Path) -> None:
    """As ``splitd config check`` and ``splitd up`` do."""
    read(f"[fleet]\n{fleet}", place)
    (error,) = configuration.check(place / "config.toml").errors
    assert error.startswith(f"config file {place / 'config.toml'}: ")
    assert said in error


def test_a_host_name_that_is_none_of_a_node(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused only where it would be the node's name."""
    monkeypatch.setattr(socket, "gethostname", lambda: "a--b")
    text = f"[fleet]\n{FILES}{ETCD}"
    read(text, place)
    (error,) = configuration.check(place / "config.toml").errors
    assert "the host name 'a--b' cannot be the node's name, so choose one" in error
    read(text.replace("[fleet]", '[fleet]\nname = "a"', 1), place)
    assert not configuration.check(place / "config.toml").errors
    read("", place)
    assert not configuration.check(place / "config.toml").errors


def test_files_and_addresses_that_cannot_be_used(place: Path) -> None:
    """A certificate that is missing or has expired, and an address that another page has."""
    authority = Authority(place / "authority")
    cert, key = authority.issue("a")
    old, its_key = authority.issue("old", days=-1)

    def troubles(cert: Path, key: Path, more: str = "") -> list[str]:
        files = f'ca = "{authority.certificate}"\ncert = "{cert}"\nkey = "{key}"\n'
        read(f'[fleet]\nname = "a"\nlisten = "127.0.0.1:7790"\n{files}{ETCD}{more}', place)
        found = configuration.check(place / "config.toml")
        assert not found.errors
        return found.troubles

    assert troubles(cert, key) == []
    (missing,) = troubles(place / "none.pem", key)
    assert f"[fleet] cert {place / 'none.pem'}: no such file" in missing
    (expired,) = troubles(old, its_key)
    assert f"[fleet] cert {old}: it expired at " in expired
    (taken,) = troubles(cert, key, '[metrics]\naddress = "127.0.0.1:7790"\n')
    assert "[fleet] listen '127.0.0.1:7790'" in taken
    assert "[metrics] address" in taken


def test_supervisord_is_told_of_a_process_more_or_less(place: Path) -> None:
    """The sections of the others stay as they are, whatever else has changed in the file."""
    here = Place(place / "r", place / "s", place / "config.toml")
    read("", place)
    without = supervision.render(here)
    file = read(f'[content]\ngrace = "1m"\n[fleet]\nname = "a"\n{FILES}{ETCD}', place)
    section = supervision.program(here, named("fleet"), file)
    assert section.startswith("[program:fleet]\n")
    assert reconcile.without(without + section, "fleet") == without
    assert reconcile.without(without, "fleet") == without
    assert supervision.render(here).endswith(section)
