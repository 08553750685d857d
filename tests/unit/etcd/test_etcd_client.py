"""What the client decides without a server: settings, the meaning of errors, nested transactions, whole revisions."""

from __future__ import annotations

from typing import Any

import pytest

from services.etcd import protocol
from services.etcd.answers import Meaning, meaning
from services.etcd.client import connect, nested
from services.etcd.cluster import FIRST, LONGEST, pause
from services.etcd.config import EtcdConfig
from services.etcd.store import COMPARES, MOST, OPERATIONS, Changes, Compacted, TooLarge, end_of
from services.etcd.watching import Watching
from services.kit import errors


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"endpoints": ("h",)}, "endpoints: 'h' is neither"),
        ({"endpoints": ("/run/etcd.sock",)}, "endpoints: '/run/etcd.sock' is not HOST:PORT"),
        ({"endpoints": ("https://h:2379",)}, "endpoints: 'https://h:2379' is HOST:PORT, without a scheme"),
        ({"endpoints": ("h:0",)}, "endpoints: '0' of 'h:0' is not a port"),
        ({"endpoints": ("h:1", "h:1")}, "endpoints: one of them is named twice"),
        ({"prefix": ""}, "prefix: it has 1 to 1024 bytes"),
        ({"user": "u", "password": "p"}, "user: a user needs TLS"),
        ({"user": "u", "tls": True}, "user: it needs a password_file or a password"),
        ({"password": "p"}, "password: there is no user to it"),
        ({"user": "u", "tls": True, "password": "p", "password_file": "/f"}, "password: password_file is set, too"),
        ({"user": "u", "tls": True, "password_file": "f"}, "password_file: 'f' is not an absolute path"),
        ({"endpoints": ("h:1",), "ca": "ca.pem"}, "endpoints: ca: 'ca.pem' is not an absolute path"),
        ({"timeout": 0.0}, "timeout: it is at least 500ms"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_words(given: dict[str, Any], words: str) -> None:
    """The message begins with the key."""
    with pytest.raises(ValueError, match=r".*") as refused:
        EtcdConfig(**given)
    assert str(refused.value).startswith(words)


def test_a_password_is_not_shown() -> None:
    """Settings are printed in logs and errors."""
    assert "secret" not in repr(EtcdConfig(user="u", tls=True, password="secret"))


def test_a_password_file_is_read_when_it_is_needed(tmp_path) -> None:
    """So it may change while a node runs. What is wrong with it names the file."""
    file = tmp_path / "password"
    config = EtcdConfig(user="u", tls=True, password_file=str(file))
    with pytest.raises(errors.Unauthenticated, match=f"{file}: no such file"):
        config.secret()
    file.write_text(" \n")
    with pytest.raises(errors.Unauthenticated, match="no password"):
        config.secret()
    file.write_bytes(b"\xff")
    with pytest.raises(errors.Unauthenticated, match="not text"):
        config.secret()
    file.write_text("geheim \n")
    assert config.secret() == "geheim"


async def test_no_endpoint_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="endpoints"):
        connect(EtcdConfig())


@pytest.mark.parametrize(
    ("error", "what", "kind"),
    [
        (errors.Unknown("etcdserver: request timed out"), Meaning.UNKNOWN, errors.Unavailable),
        (errors.DeadlineExceeded("context deadline exceeded"), Meaning.UNKNOWN, errors.Unavailable),
        (errors.Unavailable("etcdserver: leader changed"), Meaning.UNKNOWN, errors.Unavailable),
        (errors.Disconnected("no leader, and corrupt cluster"), Meaning.UNKNOWN, errors.Unavailable),
        (errors.Unavailable("etcdserver: no leader"), Meaning.ELSEWHERE, errors.Unavailable),
        (errors.OutOfRange("etcdserver: mvcc: required revision has been compacted"), Meaning.FINAL, Compacted),
        (errors.OutOfRange("etcdserver: mvcc: required revision is a future revision"), Meaning.FINAL, Compacted),
        (errors.InvalidArgument("etcdserver: request is too large"), Meaning.FINAL, TooLarge),
        (errors.ResourceExhausted("grpc: received message larger than max (3 vs. 2)"), Meaning.FINAL, TooLarge),
        (errors.ResourceExhausted("mvcc: database space exceeded"), Meaning.FINAL, errors.ResourceExhausted),
        (errors.InvalidArgument("etcdserver: user name is empty"), Meaning.FINAL, errors.Unauthenticated),
        (errors.Unauthenticated("etcdserver: invalid auth token"), Meaning.LOGIN, errors.Unauthenticated),
        (errors.InvalidArgument("etcdserver: something new"), Meaning.FINAL, errors.InvalidArgument),
        (errors.Internal("etcdserver: something new"), Meaning.UNKNOWN, errors.Unavailable),
        (errors.Unimplemented("unknown service"), Meaning.FINAL, errors.FailedPrecondition),
    ],
)
def test_what_an_error_means(error: errors.NodeError, what: Meaning, kind: type[errors.NodeError]) -> None:
    """Only words and codes that deny a write say that it did not happen. Each error names the member."""
    found, ours = meaning(error, "h:1")
    assert (found, type(ours)) == (what, kind)
    assert "h:1" in str(ours)


@pytest.mark.parametrize("compares", [0, 1, COMPARES])
@pytest.mark.parametrize("count", [1, OPERATIONS, OPERATIONS + 1, 300, MOST])
def test_a_transaction_keeps_etcds_limits(count: int, compares: int) -> None:
    """A level has at most 128 operations, less those of the level around it. All of them are there, in order."""
    operations = [protocol.RequestOp(request_put={"key": b"%d" % n}) for n in range(count)]
    outer = nested(operations, compares)
    left = OPERATIONS - max(len(outer), compares)
    inner = [each for each in outer if each.WhichOneof("request") == "request_txn"]
    assert len(outer) <= OPERATIONS
    assert all(len(each.request_txn.success) <= left for each in inner)
    flat = [put for each in outer for put in (each.request_txn.success if each in inner else [each])]
    assert [each.request_put.key for each in flat] == [b"%d" % n for n in range(count)]


def test_pauses_grow_to_a_bound() -> None:
    """Chance takes up to half of them away."""
    for failures, whole in ((1, FIRST), (2, 2 * FIRST), (4, 8 * FIRST), (20, LONGEST), (10**6, LONGEST)):
        found = [pause(failures) for _ in range(200)]
        assert whole / 2 <= min(found) <= max(found) <= whole
        assert max(found) - min(found) > whole / 5


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0"), (b"a\0", b"a\1")]
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    """etcd3's own fails for an empty one and for one that ends in 0xff."""
    assert end_of(prefix) == end


def response(*revisions: int, fragment: bool = False, header: int = 0) -> Any:
    events = [{"kv": {"key": b"%d" % n, "mod_revision": n}} for n in revisions]
    return protocol.WatchResponse(events=events, fragment=fragment, header={"revision": header})


def test_a_watch_tells_whole_revisions_once() -> None:
    """The last revision of a fragment waits for the rest of it. What a member tells again is left out."""
    watching = Watching(None, b"", 4)  # type: ignore[arg-type]

    def told(*revisions: int, fragment: bool = False, header: int = 0) -> tuple[int, list[bytes]] | None:
        found = watching.whole(response(*revisions, fragment=fragment, header=header))
        return None if found is None else (found.revision, [change.key for change in found.changes])

    assert told(5, 5, 6, fragment=True) == (5, [b"5", b"5"])
    assert told(6, fragment=True) is None
    assert told(6, 7) == (7, [b"6", b"6", b"6", b"7"])
    assert watching.whole(response(header=9)) == Changes(9, ())
    assert told(8, 9) is None
    assert told(header=3) == (9, [])
