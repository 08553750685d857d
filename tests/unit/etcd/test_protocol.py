"""etcd's messages come out of the installed etcd3, and nothing installed is changed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.etcd import protocol
from tests.support import TOP


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=TOP,
        env={"PYTHONPATH": str(TOP)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_messages_are_protobufs_c_code() -> None:
    """They are as fast as those of a protoc of today."""
    assert (
        run(
            "from services.etcd import protocol; from google.protobuf.internal import api_implementation as a; "
            "print(a.Type(), protocol.TxnRequest.__mro__[1].__module__)"
        )
        == "upb google._upb._message"
    )


def test_the_protocol_costs_no_import_of_etcd3_and_none_of_grpc() -> None:
    """etcd3's code is not run, so its processes have neither grpcio nor tenacity in memory."""
    loaded = run("from services.etcd import protocol; import sys; print(*sys.modules)").split()
    assert not {name for name in loaded if name.split(".")[0] in ("etcd3", "grpc", "tenacity", "six")}


def test_etcd3_itself_can_be_imported() -> None:
    """After for_etcd3, etcd3's client and stubs are there, on the same messages."""
    assert (
        run(
            "from services.etcd import protocol; protocol.for_etcd3(); import etcd3; "
            "print(etcd3.etcdrpc.TxnRequest is protocol.TxnRequest, etcd3.etcdrpc.KVStub.__name__, "
            "etcd3.etcdrpc.RangeRequest.SortOrder.Value('DESCEND'), callable(etcd3.client))"
        )
        == "True KVStub 2 True"
    )


def test_etcd3_alone_cannot_be_imported_with_this_protobuf() -> None:
    """This is why protocol.py exists. Once it can be, protocol.py may go."""
    done = subprocess.run([sys.executable, "-P", "-c", "import etcd3"], text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert "TypeError" in done.stderr


def test_nothing_installed_is_changed() -> None:
    """The default pool, which other modules share, knows nothing of etcd."""
    assert (
        run(
            "from services.etcd import protocol; from google.protobuf import descriptor_pool as d\n"
            "try: d.Default().FindFileByName('rpc.proto')\n"
            "except KeyError: print('absent')"
        )
        == "absent"
    )


def test_fields_of_later_releases_are_there() -> None:
    """Fragments of watches are of etcd 3.4, etcd3's files of 3.3."""
    request = protocol.WatchRequest(create_request={"key": b"k", "fragment": True})
    assert protocol.WatchRequest.FromString(request.SerializeToString()).create_request.fragment
    request = protocol.WatchRequest(progress_request={})
    assert request.WhichOneof("request_union") == "progress_request"
    assert request.SerializeToString() == b"\x1a\x00"


def test_another_file_is_refused_in_words(tmp_path) -> None:
    """A file without a descriptor is named, with what is needed."""
    strange = tmp_path / "rpc_pb2.py"
    strange.write_text("x = 1\n")
    with pytest.raises(protocol.MissingError, match=r"rpc_pb2.py holds no descriptor that can be read: etcd3 0.12.0"):
        protocol.serialized(strange)
