"""A sandbox controller as another project would write one: each sandbox is a process that sleeps. It is served in a
test's own process (:class:`Sandboxer`), or as one of its own::

    python tests/sandboxer.py --root ROOT --address SOCKET
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from api.containerd.services.sandbox.v1 import sandbox_pb2 as pb
from api.containerd.services.sandbox.v1 import sandbox_stubs
from api.containerd.types.metrics_pb2 import Metric
from api.containerd.types.platform_pb2 import Platform
from services.kit import errors, process, rpc
from services.kit.rpc import Call


class Sandboxer:
    """The sandboxes in ``root``: a file of each, which outlasts the controller, as does the process."""

    SERVICE = sandbox_stubs.CONTROLLER

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []
        """Method, request and headers of each."""

    @property
    def there(self) -> list[str]:
        """``NAMESPACE:ID`` of each, in order."""
        return sorted(path.name for path in self.root.iterdir())

    def _file(self, call: Call, id_: str) -> Path:
        return self.root / f"{call.optional_namespace}:{id_}"

    def _state(self, request: Any, call: Call) -> dict[str, Any]:
        self.calls.append((call.method.rpartition("/")[2], request, dict(call.headers)))
        try:
            found: dict[str, Any] = json.loads(self._file(call, request.sandbox_id).read_text())
        except FileNotFoundError:
            raise errors.NotFound(f"sandbox {request.sandbox_id} in {self.root.name}") from None
        return found

    def _keep(self, call: Call, id_: str, state: dict[str, Any]) -> None:
        self._file(call, id_).write_text(json.dumps(state))

    async def Create(self, request: pb.ControllerCreateRequest, call: Call) -> pb.ControllerCreateResponse:
        self.calls.append(("Create", request, dict(call.headers)))
        if request.annotations.get("fail"):
            raise errors.FailedPrecondition(f"no room for sandbox {request.sandbox_id}")
        if self._file(call, request.sandbox_id).exists():
            raise errors.AlreadyExists(f"sandbox {request.sandbox_id}")
        self._keep(call, request.sandbox_id, {"runtime": request.sandbox.runtime.name, "pid": 0})
        return pb.ControllerCreateResponse()

    async def Start(self, request: pb.ControllerStartRequest, call: Call) -> pb.ControllerStartResponse:
        state = self._state(request, call)
        pid = await asyncio.to_thread(_sleeping)
        self._keep(call, request.sandbox_id, {**state, "pid": pid, "started": time.time_ns()})
        answer = pb.ControllerStartResponse(pid=pid, address=f"ttrpc+unix://{self.root}/{pid}.sock", version=3)
        answer.created_at.FromNanoseconds(time.time_ns())
        return answer

    async def Platform(self, request: pb.ControllerPlatformRequest, call: Call) -> pb.ControllerPlatformResponse:
        self._state(request, call)
        return pb.ControllerPlatformResponse(platform=Platform(os="linux", architecture="riscv64"))

    async def Stop(self, request: pb.ControllerStopRequest, call: Call) -> pb.ControllerStopResponse:
        state = self._state(request, call)
        if state["pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(state["pid"], signal.SIGKILL)
        return pb.ControllerStopResponse()

    async def Wait(self, request: pb.ControllerWaitRequest, call: Call) -> pb.ControllerWaitResponse:
        state = self._state(request, call)
        while _runs(state["pid"]):
            await asyncio.sleep(0.02)
        answer = pb.ControllerWaitResponse(exit_status=137)
        answer.exited_at.FromNanoseconds(time.time_ns())
        return answer

    async def Status(self, request: pb.ControllerStatusRequest, call: Call) -> pb.ControllerStatusResponse:
        state = self._state(request, call)
        ready = _runs(state["pid"])
        info = {"runtime": state["runtime"]} if request.verbose else {}
        return pb.ControllerStatusResponse(
            pid=state["pid"], state="SANDBOX_READY" if ready else "SANDBOX_NOTREADY", info=info, version=3
        )

    async def Shutdown(self, request: pb.ControllerShutdownRequest, call: Call) -> pb.ControllerShutdownResponse:
        await self.Stop(pb.ControllerStopRequest(sandbox_id=request.sandbox_id), call)
        self._file(call, request.sandbox_id).unlink()
        return pb.ControllerShutdownResponse()

    async def Metrics(self, request: pb.ControllerMetricsRequest, call: Call) -> pb.ControllerMetricsResponse:
        self._state(request, call)
        return pb.ControllerMetricsResponse(metrics=Metric(id=request.sandbox_id))

    async def Update(self, request: pb.ControllerUpdateRequest, call: Call) -> pb.ControllerUpdateResponse:
        self._state(request, call)
        return pb.ControllerUpdateResponse()

    def end(self) -> None:
        """Kill what runs."""
        for path in self.root.iterdir():
            if pid := json.loads(path.read_text())["pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _sleeping() -> int:
    """The pid of a process that sleeps, and that outlasts the controller."""
    return subprocess.Popen(
        ["sleep", "infinity"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    ).pid


def _runs(pid: int) -> bool:
    try:
        return pid > 0 and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def _serve(address: str, root: Path) -> None:
    async with rpc.serving(Path(address), [Sandboxer(root)]):
        await process.until_signal()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--address", required=True)
    found = parser.parse_args()
    asyncio.run(_serve(found.address, found.root))
