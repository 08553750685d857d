"""Shims, from outside: finding, starting and cleaning up with their programs, and the connection to one that runs.

The contract is containerd's runtime v2 (its core/runtime/v2/README.md). A shim's program is run in the bundle, and has
two actions. ``start`` leaves a process behind, and prints the address at which that listens. ``delete`` kills and
unmounts what a dead shim left, and prints how the task ended. The process serves the Task service, version 2 or 3 (with
the same messages), over ttrpc or gRPC.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from api.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from api.containerd.runtime.task.v3 import shim_pb2 as pb
from services.kit import cgroups, errors, rpc, tracing, ttrpc
from services.kit.identifiers import quoted
from services.kit.version import VERSION
from services.oci.mounts import Mount
from services.oci.mounts_convert import mounts_to_pb
from services.oci.opaque import Opaque
from services.oci.opaque_convert import opaque_from_pb, opaque_to_pb
from services.tasks import convert, programs
from services.tasks.bundle import Address, Bundle, address_of
from services.tasks.store import IO, Exit, Process, ProcessInfo

log = logging.getLogger(__name__)

NEWEST = 3
"""The newest version of the task API."""

_STDOUT_LIMIT = 1 << 20
_SHOWN = 200
"""Bytes of a malformed answer that its error shows."""


# ---------------------------------------------------------------------------------------------- the program


class Programs:
    """Finds the programs of runtimes. It remembers those that it found, and looks again for those that it did not."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def find(self, runtime: str) -> str:
        """The path for a name like ``io.containerd.runc.v2``; an absolute path is returned as it is. Unknown, in
        containerd's words, if there is no such program.
        """
        if not runtime:
            raise errors.Unknown("no runtime name")
        if runtime.startswith("/"):
            try:
                os.stat(runtime)
            except OSError as error:
                raise _os_error(f"invalid custom binary path: stat {runtime}", error) from None
            return runtime
        parts = runtime.split(".")
        if "/" in runtime or len(parts) < 2 or not parts[0]:
            raise errors.Unknown(
                f"invalid runtime name {runtime}, correct runtime name should be either format like "
                "`io.containerd.runc.v2`"
                " or a full path to the binary"
            )
        name = f"containerd-shim-{parts[-2]}-{parts[-1]}"
        path = self._found.get(name)
        if path is None:
            path = shutil.which(name)
            if path is None:
                raise errors.Unknown(f'runtime "{runtime}" binary not installed "{name}": file does not exist')
            self._found[name] = path = os.path.abspath(path)
        return path


def _os_error(what: str, error: OSError) -> errors.NodeError:
    """In Go's words, which clients know: lower case."""
    return errors.Unknown(f"{what}: {errors.words(error)}")


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of every shim of a node: the node's public socket, whose exact path shims hash into the names of
    their own sockets, and the socket for events.
    """

    grpc_address: Path
    ttrpc_address: Path
    extra: tuple[str, ...] = ()

    def variables(self, namespace: str) -> dict[str, str]:
        return {
            **os.environ,
            **tracing.environment(),
            "GOMAXPROCS": "2",
            "MAX_SHIM_VERSION": "2",
            "TTRPC_ADDRESS": str(self.ttrpc_address),
            "GRPC_ADDRESS": str(self.grpc_address),
            "NAMESPACE": namespace,
            **dict(e.split("=", 1) for e in self.extra if "=" in e),
        }


class Program:
    """One runtime's program, to be run for one bundle."""

    _modern: set[tuple[str, int]] = set()
    """Programs, with the time of their last change, that want BootstrapParams on their standard input (containerd
    2.3 and later).
    """

    def __init__(self, path: str, bundle: Bundle, environment: Environment) -> None:
        self.path = path
        self.bundle = bundle
        self._environment = environment

    async def start(self, options: Opaque | None, timeout: float) -> Address:
        """Start a shim, or learn that a running one serves this task too; return its address.

        The program's standard input has the runtime's options as an Any. A program of containerd 2.3 or later refuses
        that, and is given BootstrapParams then.
        """
        with tracing.span("tasks.shim.program", program=self.path):
            return await self._start(options, timeout)

    async def _start(self, options: Opaque | None, timeout: float) -> Address:
        key = (self.path, os.stat(self.path).st_mtime_ns)
        if key not in self._modern:
            code, output, trouble = await self._run(["start"], _legacy_input(options), timeout)
            if code == 0:
                return parse_address(output)
            if b"through the deprecated API" not in trouble:
                raise _failed(code, trouble or output)
            self._modern.add(key)
        code, output, trouble = await self._run(["start"], self._bootstrap_input(options), timeout)
        if code != 0:
            raise _failed(code, trouble or output)
        return parse_address(output)

    async def delete(self, timeout: float) -> Exit:
        """Clean up after a dead shim: kill its processes, and unmount. Return the exit that its task counts as."""
        code, output, trouble = await self._run(["-bundle", str(self.bundle.path), "delete"], b"", timeout)
        if code != 0:
            raise _failed(code, trouble)
        if trouble.strip():
            log.debug(
                "cleaning up %s/%s: %s", self.bundle.namespace, self.bundle.id, trouble.decode(errors="replace").strip()
            )
        try:
            return convert.delete_from_pb(pb.DeleteResponse.FromString(output))
        except DecodeError:
            raise errors.Unknown(
                f"{self.path} delete: what it printed is no answer: {quoted(output[:_SHOWN].decode(errors='replace'))}"
            ) from None

    async def features(self, options: Opaque | None, timeout: float) -> dict[str, Any] | None:
        """The features of the OCI runtime behind the shim (``runc features``); None if it does not tell them."""
        code, output, trouble = await self._execute(["-info"], _legacy_input(options), timeout)
        if code != 0:
            raise errors.Unknown(
                f"failed to run [{self.path} -info]: {_status(code)} (stderr: "
                f"{quoted(trouble.decode(errors='replace'))})"
            )
        return convert.features_from_info(output)

    async def allowed_mounts(self, options: Opaque | None, timeout: float) -> frozenset[str]:
        """The types of mounts that a shim makes itself, of those that others are made for. Shims before containerd 2.0
        do not tell any.
        """
        code, output, _ = await self._execute(["-info"], _legacy_input(options), timeout)
        return convert.allowed_from_info(output) if code == 0 else frozenset()

    def _bootstrap_input(self, options: Opaque | None) -> bytes:
        params = bootstrap_pb2.BootstrapParams(
            instance_id=self.bundle.id,
            namespace=self.bundle.namespace,
            containerd_version=VERSION,
            containerd_binary=_publisher(),
            containerd_ttrpc_address=str(self._environment.ttrpc_address),
            containerd_grpc_address=str(self._environment.grpc_address),
        )
        if options is not None:
            params.extensions.add(value=opaque_to_pb(options))
        return params.SerializeToString()

    async def _run(self, action: Sequence[str], stdin: bytes, timeout: float) -> tuple[int, bytes, bytes]:
        return await self._execute(
            [
                "-namespace",
                self.bundle.namespace,
                "-address",
                str(self._environment.grpc_address),
                "-publish-binary",
                _publisher(),
                "-id",
                self.bundle.id,
                *action,
            ],
            stdin,
            timeout,
        )

    async def _execute(self, arguments: Sequence[str], stdin: bytes, timeout: float) -> tuple[int, bytes, bytes]:
        """Run the program; return its exit code, standard output and standard error. Those are files in memory, not
        pipes, so that a process that inherits them cannot delay us.
        """
        with _memory_file(stdin) as given, _memory_file() as output, _memory_file() as trouble:
            try:
                code = await programs.run(
                    [*cgroups.leaving(os.environ), self.path, *arguments],
                    self.bundle.path,
                    self._environment.variables(self.bundle.namespace),
                    timeout,
                    stdin=given,
                    stdout=output,
                    stderr=trouble,
                )
            except TimeoutError:
                raise errors.DeadlineExceeded(f"{self.path} {arguments[-1]}: not done after {timeout:g} s") from None
            except OSError as error:
                raise _os_error(f"fork/exec {self.path}", error) from None
            return code, os.pread(output, _STDOUT_LIMIT, 0), os.pread(trouble, _STDOUT_LIMIT, 0)


@contextlib.contextmanager
def _memory_file(content: bytes = b"") -> Iterator[int]:
    with open(os.memfd_create("shim", os.MFD_CLOEXEC), "w+b") as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


def _legacy_input(options: Opaque | None) -> bytes:
    value = opaque_to_pb(options)
    return b"" if value is None else value.SerializeToString()


def _publisher() -> str:
    """The program that a shim without TTRPC_ADDRESS runs to publish an event. All shims have that variable; the flag
    must only name a program.
    """
    return sys.executable


def _failed(code: int, trouble: bytes) -> errors.NodeError:
    text = trouble.decode(errors="replace").strip()
    return errors.Unknown(f"{text}: {_status(code)}" if text else _status(code))


def _status(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"signal: {-code}"


def check_id_mapped_mounts(features: dict[str, Any] | None) -> None:
    """Refuse, in containerd's words, a runtime that would silently ignore id mapped mounts. A runtime that does not
    tell its features is accepted.
    """
    if features is None:
        return
    idmap = ((features.get("linux") or {}).get("mountExtensions") or {}).get("idmap")
    if idmap is None:
        raise errors.Unknown("idmap mounts not supported: missing `mountExtensions.idmap` entry in `features` command")
    if not idmap.get("enabled"):
        raise errors.Unknown(
            "idmap mounts not supported: entry `mountExtensions.idmap.Enabled` in `features` command not present or "
            "disabled"
        )


def parse_address(output: bytes) -> Address:
    """Read the output of ``start``: a BootstrapResult, JSON, or only an address, as shims up to 1.7 print it."""
    with contextlib.suppress(DecodeError):
        result = bootstrap_pb2.BootstrapResult.FromString(output)
        if result.address and result.protocol in ("ttrpc", "grpc"):
            return _supported(Address(result.protocol, result.address, result.version))
    text = output.decode(errors="replace").strip()
    if (found := address_of(output)) is not None and found.version >= 2:
        return _supported(found)
    if not text:
        raise errors.Unknown("the shim printed no address")
    return Address("ttrpc", text, 2)


def _supported(address: Address) -> Address:
    if address.version > NEWEST:
        raise errors.Unimplemented(f"unsupported shim version ({address.version})")
    if address.protocol not in ("ttrpc", "grpc"):
        raise errors.Unknown(f'unexpected protocol: "{address.protocol}"')
    return address


# ---------------------------------------------------------------------------------------------- the service


class Connection:
    """The Task service of one running shim, for one task. When the connection is lost all calls fail with Unavailable,
    and ``on_close`` is called once (not over gRPC).

    Each method takes ``timeout`` in seconds; None means no limit.
    """

    def __init__(self, address: Address, namespace: str, name: str, on_close: Callable[[], None]) -> None:
        self.address = address
        self.version = min(address.version, NEWEST)
        self._id = name
        self._headers = {rpc.NAMESPACE: namespace}
        path = socket_path(address.address)
        self.channel: ttrpc.Channel | rpc.Channel
        if address.protocol == "grpc":
            self.channel = rpc.Channel(path, f"shim {name}", pings="never")
        else:
            self.channel = ttrpc.Channel(path, f"shim {name}", on_close=on_close)

    async def connect(self, timeout: float) -> None:
        """Connect. Unavailable if that fails, caused by the OSError if no process listens."""
        if isinstance(self.channel, ttrpc.Channel):
            await self.channel.connect(timeout)
        elif not await self.channel.wait_connected(timeout):
            cause = _refusal(socket_path(self.address.address)) or TimeoutError("timed out")
            raise errors.Unavailable(f"connect to {self.address.address}: {errors.words(cause)}") from cause

    async def close(self) -> None:
        await self.channel.close()

    async def closed(self) -> None:
        """Wait until the shim has ended the connection (over gRPC this returns at once)."""
        if isinstance(self.channel, ttrpc.Channel):
            await self.channel.wait_closed()

    async def _call(self, method: str, request: Message, response: type[Any], timeout: float | None) -> Any:
        while True:
            try:
                return await self.channel.unary(
                    f"/containerd.task.v{self.version}.Task/{method}",
                    request,
                    self._headers,
                    timeout,
                    type(request).SerializeToString,
                    response.FromString,
                )
            except errors.Unimplemented as error:
                # An older program started this shim than the one that told the version.
                if self.version < NEWEST or "service" not in str(error):
                    raise
                self.version -= 1

    async def connect_pids(self, timeout: float) -> tuple[int, int]:
        """The pid of the shim, and that of its task; 0 for a task that was not created."""
        response: pb.ConnectResponse = await self._call(
            "Connect", pb.ConnectRequest(id=self._id), pb.ConnectResponse, timeout
        )
        return response.shim_pid, response.task_pid

    async def create(
        self, bundle: Path, rootfs: Sequence[Mount], io: IO, checkpoint: str, options: Opaque | None, timeout: float
    ) -> int:
        request = pb.CreateTaskRequest(
            id=self._id,
            bundle=str(bundle),
            rootfs=mounts_to_pb(rootfs),
            stdin=io.stdin,
            stdout=io.stdout,
            stderr=io.stderr,
            terminal=io.terminal,
            checkpoint=checkpoint,
            options=opaque_to_pb(options),
        )
        return int((await self._call("Create", request, pb.CreateTaskResponse, timeout)).pid)

    async def start(self, exec_id: str, timeout: float) -> int:
        return int(
            (await self._call("Start", pb.StartRequest(id=self._id, exec_id=exec_id), pb.StartResponse, timeout)).pid
        )

    async def delete(self, exec_id: str, timeout: float) -> Exit:
        return convert.delete_from_pb(
            await self._call("Delete", pb.DeleteRequest(id=self._id, exec_id=exec_id), pb.DeleteResponse, timeout)
        )

    async def state(self, exec_id: str, timeout: float) -> Process:
        return convert.process_from_shim(
            exec_id or self._id,
            await self._call("State", pb.StateRequest(id=self._id, exec_id=exec_id), pb.StateResponse, timeout),
        )

    async def kill(self, exec_id: str, signal: int, everything: bool, timeout: float) -> None:
        await self._call(
            "Kill", pb.KillRequest(id=self._id, exec_id=exec_id, signal=signal, all=everything), Empty, timeout
        )

    async def exec(self, exec_id: str, spec: Opaque | None, io: IO, timeout: float) -> None:
        request = pb.ExecProcessRequest(
            id=self._id,
            exec_id=exec_id,
            spec=opaque_to_pb(spec),
            stdin=io.stdin,
            stdout=io.stdout,
            stderr=io.stderr,
            terminal=io.terminal,
        )
        await self._call("Exec", request, Empty, timeout)

    async def resize(self, exec_id: str, width: int, height: int, timeout: float) -> None:
        await self._call(
            "ResizePty", pb.ResizePtyRequest(id=self._id, exec_id=exec_id, width=width, height=height), Empty, timeout
        )

    async def close_stdin(self, exec_id: str, timeout: float) -> None:
        await self._call("CloseIO", pb.CloseIORequest(id=self._id, exec_id=exec_id, stdin=True), Empty, timeout)

    async def pause(self, timeout: float) -> None:
        await self._call("Pause", pb.PauseRequest(id=self._id), Empty, timeout)

    async def resume(self, timeout: float) -> None:
        await self._call("Resume", pb.ResumeRequest(id=self._id), Empty, timeout)

    async def pids(self, timeout: float) -> list[ProcessInfo]:
        return convert.pids_from_pb(
            (await self._call("Pids", pb.PidsRequest(id=self._id), pb.PidsResponse, timeout)).processes
        )

    async def checkpoint(self, path: Path, options: Opaque | None, timeout: float) -> None:
        await self._call(
            "Checkpoint",
            pb.CheckpointTaskRequest(id=self._id, path=str(path), options=opaque_to_pb(options)),
            Empty,
            timeout,
        )

    async def update(self, resources: Opaque | None, annotations: Mapping[str, str], timeout: float) -> None:
        await self._call(
            "Update",
            pb.UpdateTaskRequest(id=self._id, resources=opaque_to_pb(resources), annotations=dict(annotations)),
            Empty,
            timeout,
        )

    async def stats(self, timeout: float) -> Opaque | None:
        response: pb.StatsResponse = await self._call("Stats", pb.StatsRequest(id=self._id), pb.StatsResponse, timeout)
        return opaque_from_pb(response.stats, present=response.HasField("stats"))

    async def wait(self, exec_id: str) -> Exit:
        """Wait for the exit of a process, without limit."""
        return convert.wait_from_pb(
            await self._call("Wait", pb.WaitRequest(id=self._id, exec_id=exec_id), pb.WaitResponse, None)
        )

    async def shutdown(self, timeout: float) -> None:
        """Ask the shim to end. A shim that serves other tasks stays."""
        await self._call("Shutdown", pb.ShutdownRequest(id=self._id), Empty, timeout)


def _refusal(path: str) -> OSError | None:
    """The reason for which a connection to ``path`` fails; None if a process listens. (A gRPC channel tries again and
    again, and does not tell the reason.)
    """
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except BlockingIOError:  # the queue of the listener is full
        return None
    except OSError as error:
        return error
    return None


def socket_path(address: str) -> str:
    """The path of a shim's socket; for an abstract one its name after a zero character."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return f"\0{address}"
    if scheme != "unix":
        raise errors.Unimplemented(f"shim address {address}: {scheme}")
    return rest
