"""Finding and calling shims' programs, and parsing their answers."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from api.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from api.containerd.runtime.task.v3 import shim_pb2
from services.kit import errors, settings
from services.oci.opaque import Opaque
from services.tasks import config
from services.tasks.bundle import Address, Bundle
from services.tasks.shim import Connection, Environment, Program, check_id_mapped_mounts, parse_address, socket_path

RUNC = "containerd.runc.v1.Options"
PROGRAM = "/usr/bin/containerd-shim-runc-v2"


@pytest.mark.parametrize(
    ("printed", "address"),
    [
        (b"unix:///run/containerd/s/abc", Address("ttrpc", "unix:///run/containerd/s/abc", 2)),
        (b"/containerd-shim/x.sock\n", Address("ttrpc", "/containerd-shim/x.sock", 2)),
        (b'{"version":3,"address":"unix:///s","protocol":"ttrpc"}', Address("ttrpc", "unix:///s", 3)),
        (b'{"version":2,"address":"unix:///s","protocol":"grpc"}\n', Address("grpc", "unix:///s", 2)),
        (
            bootstrap_pb2.BootstrapResult(version=3, address="unix:///s", protocol="ttrpc").SerializeToString(),
            Address("ttrpc", "unix:///s", 3),
        ),
    ],
)
def test_what_start_prints(printed: bytes, address: Address) -> None:
    """The three forms of an answer."""
    assert parse_address(printed) == address


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (b"", "the shim printed no address"),
        (b'{"version":4,"address":"unix:///s","protocol":"ttrpc"}', r"unsupported shim version \(4\): not implemented"),
        (b'{"version":3,"address":"unix:///s","protocol":"smoke"}', 'unexpected protocol: "smoke"'),
    ],
)
def test_what_start_must_not_print(printed: bytes, words: str) -> None:
    """Each is named."""
    with pytest.raises(errors.NodeError, match=f"^{words}$"):
        parse_address(printed)


def test_socket_paths() -> None:
    """A unix URI is a path, a bare name an abstract socket, anything else not ours."""
    assert socket_path("unix:///run/x") == "/run/x"
    assert socket_path("/containerd-shim/x") == "\0/containerd-shim/x"
    with pytest.raises(errors.Unimplemented, match="vsock"):
        socket_path("vsock://3:1024")


@pytest.mark.parametrize("protocol", ["ttrpc", "grpc"])
async def test_a_closed_and_a_silent_socket_are_told_apart(place: Path, protocol: str) -> None:
    """A closed socket means a dead shim, whose task is cleaned up; a silent one means a slow shim, which is kept."""
    causes: list[type[BaseException | None]] = []
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as silent:
        dead.bind(str(place / "dead"))
        silent.bind(str(place / "silent"))
        silent.listen(1)
        for name in ("absent", "dead", "silent"):
            connection = Connection(Address(protocol, f"unix://{place / name}", 2), "ns", "c", lambda: None)
            try:
                await connection.connect(0.3)
                await connection.connect_pids(0.3)
            except errors.NodeError as error:
                causes.append(type(error.__cause__))
            await connection.close()
    assert causes[:2] == [FileNotFoundError, ConnectionRefusedError]
    assert causes[2] not in (FileNotFoundError, ConnectionRefusedError)


SHIM = """#!{python}
import sys, os
sys.path.insert(0, {top!r})
open("calls", "a").write(" ".join(sys.argv[1:]) + "\\n")
action = sys.argv[-1]
data = sys.stdin.buffer.read() if action == "start" else b""
{body}
"""


def program(place: Path, body: str) -> Program:
    path = place / "shim"
    path.write_text(SHIM.format(python=sys.executable, top=str(Path(__file__).parents[3]), body=body))
    path.chmod(0o755)
    bundle = Bundle.of(place / "root", place / "state", "ns", "c")
    bundle.create(b"{}")
    return Program(
        str(path), bundle, Environment(place / "containerd.sock", place / "containerd.sock.ttrpc", ("MINE=1",))
    )


async def test_a_legacy_shim_gets_options_arguments_and_environment(place: Path) -> None:
    """Its standard input is the options' Any, its arguments and variables are the contract's."""
    one = program(
        place,
        """
from google.protobuf.any_pb2 import Any
assert Any.FromString(data).type_url == "containerd.runc.v1.Options", data
assert os.environ["TTRPC_ADDRESS"].endswith("containerd.sock.ttrpc") and os.environ["NAMESPACE"] == "ns" and os.environ["MINE"] == "1"
print("unix:///x")""",
    )
    assert await one.start(Opaque(RUNC, b"\x08\x01"), 20) == Address("ttrpc", "unix:///x", 2)
    call = (one.bundle.path / "calls").read_text().split()
    assert call[:4] == ["-namespace", "ns", "-address", str(place / "containerd.sock")]
    assert call[-3:] == ["-id", "c", "start"]


async def test_a_shim_of_23_is_given_bootstrap_params(place: Path) -> None:
    """A shim that refuses the old call is called in the new way, and from then on in that way only."""
    one = program(
        place,
        """
from api.containerd.runtime.bootstrap.v1 import bootstrap_pb2 as b
p = b.BootstrapParams.FromString(data)
if p.instance_id != "c" or p.namespace != "ns":
    sys.exit("bootstrap parameters do not match command-line arguments: shim was started through the deprecated API but was built against the new API")
assert p.containerd_grpc_address.endswith("containerd.sock") and p.extensions[0].value.type_url == "containerd.runc.v1.Options"
sys.stdout.buffer.write(b.BootstrapResult(version=3, address="unix:///y", protocol="ttrpc").SerializeToString())""",
    )
    for _ in range(2):
        assert await one.start(Opaque(RUNC, b"\x08\x01"), 20) == Address("ttrpc", "unix:///y", 3)
    assert len((one.bundle.path / "calls").read_text().splitlines()) == 3


async def test_a_shim_that_fails_says_why(place: Path) -> None:
    """The error has its standard error and exit status."""
    one = program(place, 'sys.exit("no room")')
    with pytest.raises(errors.Unknown, match=r"^no room: exit status 1$"):
        await one.start(None, 20)


async def test_a_shim_that_hangs_is_killed(place: Path) -> None:
    """It is killed after the time allowed. A process that inherited its output does not delay the error."""
    one = program(place, "import time; time.sleep(1000)")
    with pytest.raises(errors.DeadlineExceeded, match="not done after 0.5 s"):
        await one.start(None, 0.5)


async def test_delete_tells_how_the_task_ended(place: Path) -> None:
    """The program prints a DeleteResponse; warnings on its standard error are no failure."""
    one = program(
        place,
        """
from api.containerd.runtime.task.v3 import shim_pb2
sys.stderr.write("a warning")
sys.stdout.buffer.write(shim_pb2.DeleteResponse(pid=7, exit_status=137).SerializeToString())""",
    )
    how = await one.delete(20)
    assert (how.pid, how.status) == (7, 137)
    assert (one.bundle.path / "calls").read_text().split()[-3:] == ["-bundle", str(one.bundle.path), "delete"]
    assert shim_pb2.DESCRIPTOR.package == "containerd.task.v3"


async def test_an_answer_of_delete_that_is_none_is_said(place: Path) -> None:
    """A program that prints anything other than a DeleteResponse has failed."""
    with pytest.raises(errors.Unknown, match='/shim delete: what it printed is no answer: "cleaned up, thank you'):
        await program(place, 'print("cleaned up, thank you")').delete(20)


@pytest.mark.parametrize("table", ["io.containerd.monitor.container.v1.restart", "io.containerd.internal.v1.restart"])
def test_the_restart_monitor_has_containerds_table(place: Path, table: str) -> None:
    """The interval is read from containerd 2's table and from 1.x's; ours takes precedence; a bad value is named with
    its file and key.
    """
    file = place / "c.toml"
    file.write_text(f'[plugins."{table}"]\ninterval = "5s"\n')
    assert config.load(settings.read(file)).restart_interval == 5.0
    file.write_text(f'[tasks]\nrestart_interval = "3s"\n[plugins."{table}"]\ninterval = "5s"\n')
    assert config.load(settings.read(file)).restart_interval == 3.0
    file.write_text(f'[plugins."{table}"]\ninterval = 5\n')
    with pytest.raises(errors.InvalidArgument, match="interval: 5 is not a duration"):
        config.load(settings.read(file))


def test_timeouts_have_containerds_names(place: Path) -> None:
    """[timeouts] of containerd's config is used; a bad value is named with its file and key."""
    file = place / "c.toml"
    file.write_text(
        '[tasks]\nrestart_interval = "3s"\n[timeouts]\n"io.containerd.timeout.task.state" = '
        '"7s"\n"io.containerd.timeout.bolt.open" = "0s"\n'
    )
    loaded = config.load(settings.read(file))
    assert (loaded.restart_interval, loaded.state_timeout) == (3.0, 7.0)
    file.write_text('[timeouts]\n"io.containerd.timeout.shim.load" = "soon"\n')
    with pytest.raises(
        errors.InvalidArgument,
        match=r"c\.toml: \[timeouts\] io\.containerd\.timeout\.shim\.load: 'soon' is not a duration",
    ):
        config.load(settings.read(file))


def test_runtimes_that_would_ignore_id_mapped_mounts_are_refused() -> None:
    """The error has containerd's words; a runtime that does not report its features is not refused."""
    check_id_mapped_mounts(None)
    check_id_mapped_mounts({"linux": {"mountExtensions": {"idmap": {"enabled": True}}}})
    with pytest.raises(
        errors.Unknown,
        match=r"^idmap mounts not supported: missing `mountExtensions.idmap` entry in `features` command$",
    ):
        check_id_mapped_mounts({"linux": {}})
    with pytest.raises(errors.Unknown, match="not present or disabled"):
        check_id_mapped_mounts({"linux": {"mountExtensions": {"idmap": {"enabled": False}}}})
