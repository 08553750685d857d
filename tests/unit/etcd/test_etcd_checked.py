"""``splitd config check`` of an etcd table: files that cannot be used are named, with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.configuration import etcd_troubles
from services.etcd.config import EtcdConfig
from services.kit import errors, settings
from tests.fake_registry import Authority


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Settings of a process that has an etcd table of its own."""

    etcd: EtcdConfig = field(default_factory=EtcdConfig)


def found(**values: Any) -> list[str]:
    table = {"endpoints": ["127.0.0.1:2379"], **values}
    config = settings.load(Owner, settings.File("c.toml", {"metadata": {"etcd": table}}), "metadata")
    return list(etcd_troubles("metadata", config))


def test_files_that_fit_are_no_trouble(tmp_path: Path) -> None:
    """Nor is a cluster without TLS, nor a table that is not used."""
    authority = Authority(tmp_path)
    cert, key = authority.issue("node")
    (tmp_path / "password").write_text("secret\n")
    ca = str(authority.certificate)
    assert found() == []
    assert found(ca=ca, cert=str(cert), key=str(key), user="splitd", password_file=str(tmp_path / "password")) == []
    assert found(endpoints=[], ca="/no/such/file") == []


def test_files_that_are_not_there_or_do_not_fit_are_named(tmp_path: Path) -> None:
    """Each with its table and its key."""
    authority = Authority(tmp_path)
    cert, _ = authority.issue("node")
    _, other = authority.issue("other")
    (tmp_path / "empty").write_text("")
    ca = str(authority.certificate)
    assert found(ca="/no/such/ca") == ["[metadata.etcd] ca /no/such/ca: no such file or directory"]
    assert found(ca=str(tmp_path / "empty"))[0].startswith(f"[metadata.etcd] ca {tmp_path}/empty: ")
    assert found(ca=ca, cert=str(cert), key=str(other)) == [
        f"[metadata.etcd] key {other}: it is not the key of certificate {cert}"
    ]
    (said,) = found(ca=ca, user="splitd", password_file="/no/such/password")
    assert said.startswith("[metadata.etcd] etcd's password_file /no/such/password: ")
    (said,) = found(ca=ca, user="splitd", password_file=str(tmp_path / "empty"))
    assert "no password, or more than" in said


def test_a_user_without_tls_is_refused() -> None:
    """In words that say why, and what to do."""
    with pytest.raises(errors.InvalidArgument, match=r"c\.toml: .*user: a user needs TLS, .* set ca, or tls = true"):
        found(user="splitd", password="secret")
