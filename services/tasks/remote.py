"""Tasks in another process: the interface of store.py over a channel, for the suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from api.containerd.services.tasks.v1 import tasks_pb2 as pb
from api.containerd.services.tasks.v1 import tasks_stubs
from services.kit import rpc
from services.oci.descriptors import Descriptor
from services.oci.descriptors_convert import descriptor_from_pb
from services.oci.opaque import Opaque
from services.oci.opaque_convert import opaque_to_pb
from services.tasks import convert
from services.tasks.store import IO, CreateOptions, Exit, Metric, Process, ProcessInfo

_LONG = 120.0


class RemoteTasks:
    """A :class:`services.tasks.store.Tasks`."""

    def __init__(self, channel: rpc.Channel) -> None:
        self._client = channel.client(tasks_stubs.TASKS)

    async def create(self, namespace: str, name: str, options: CreateOptions) -> int:
        return int(
            (await self._client.Create(convert.create_to_pb(name, options), headers=_of(namespace), timeout=_LONG)).pid
        )

    async def start(self, namespace: str, name: str, exec_id: str = "") -> int:
        return int(
            (
                await self._client.Start(
                    pb.StartRequest(container_id=name, exec_id=exec_id), headers=_of(namespace), timeout=_LONG
                )
            ).pid
        )

    async def delete(self, namespace: str, name: str) -> Exit:
        return convert.delete_from_pb(
            await self._client.Delete(pb.DeleteTaskRequest(container_id=name), headers=_of(namespace), timeout=_LONG)
        )

    async def delete_process(self, namespace: str, name: str, exec_id: str) -> Exit:
        request = pb.DeleteProcessRequest(container_id=name, exec_id=exec_id)
        return convert.delete_from_pb(await self._client.DeleteProcess(request, headers=_of(namespace), timeout=_LONG))

    async def get(self, namespace: str, name: str, exec_id: str = "") -> Process:
        response = await self._client.Get(pb.GetRequest(container_id=name, exec_id=exec_id), headers=_of(namespace))
        return convert.process_from_pb(response.process)

    async def list(self, namespace: str) -> Sequence[Process]:
        return [
            convert.process_from_pb(p)
            for p in (await self._client.List(pb.ListTasksRequest(), headers=_of(namespace))).tasks
        ]

    async def kill(self, namespace: str, name: str, exec_id: str, signal: int, *, everything: bool) -> None:
        request = pb.KillRequest(container_id=name, exec_id=exec_id, signal=signal, all=everything)
        await self._client.Kill(request, headers=_of(namespace), timeout=_LONG)

    async def exec(self, namespace: str, name: str, exec_id: str, spec: Opaque | None, io: IO) -> None:
        request = pb.ExecProcessRequest(
            container_id=name,
            exec_id=exec_id,
            spec=opaque_to_pb(spec),
            stdin=io.stdin,
            stdout=io.stdout,
            stderr=io.stderr,
            terminal=io.terminal,
        )
        await self._client.Exec(request, headers=_of(namespace), timeout=_LONG)

    async def resize(self, namespace: str, name: str, exec_id: str, width: int, height: int) -> None:
        await self._client.ResizePty(
            pb.ResizePtyRequest(container_id=name, exec_id=exec_id, width=width, height=height), headers=_of(namespace)
        )

    async def close_stdin(self, namespace: str, name: str, exec_id: str = "") -> None:
        await self._client.CloseIO(
            pb.CloseIORequest(container_id=name, exec_id=exec_id, stdin=True), headers=_of(namespace)
        )

    async def pause(self, namespace: str, name: str) -> None:
        await self._client.Pause(pb.PauseTaskRequest(container_id=name), headers=_of(namespace), timeout=_LONG)

    async def resume(self, namespace: str, name: str) -> None:
        await self._client.Resume(pb.ResumeTaskRequest(container_id=name), headers=_of(namespace), timeout=_LONG)

    async def pids(self, namespace: str, name: str) -> Sequence[ProcessInfo]:
        return convert.pids_from_pb(
            (await self._client.ListPids(pb.ListPidsRequest(container_id=name), headers=_of(namespace))).processes
        )

    async def checkpoint(
        self, namespace: str, name: str, options: Opaque | None, *, lease: str = ""
    ) -> Sequence[Descriptor]:
        request = pb.CheckpointTaskRequest(container_id=name, options=opaque_to_pb(options))
        headers = _of(namespace) | ({rpc.LEASE: lease} if lease else {})
        return [
            descriptor_from_pb(d)
            for d in (await self._client.Checkpoint(request, headers=headers, timeout=_LONG)).descriptors
        ]

    async def update(self, namespace: str, name: str, resources: Opaque | None, annotations: Mapping[str, str]) -> None:
        request = pb.UpdateTaskRequest(
            container_id=name, resources=opaque_to_pb(resources), annotations=dict(annotations)
        )
        await self._client.Update(request, headers=_of(namespace), timeout=_LONG)

    async def metrics(self, namespace: str, filters: Sequence[str]) -> Sequence[Metric]:
        response = await self._client.Metrics(pb.MetricsRequest(filters=filters), headers=_of(namespace))
        return [convert.metric_from_pb(m) for m in response.metrics]

    async def wait(self, namespace: str, name: str, exec_id: str = "") -> Exit:
        request = pb.WaitRequest(container_id=name, exec_id=exec_id)
        return convert.wait_from_pb(await self._client.Wait(request, headers=_of(namespace), timeout=None))


def _of(namespace: str) -> dict[str, str | bytes]:
    return {rpc.NAMESPACE: namespace}
