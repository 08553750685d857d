"""containerd.services.tasks.v1.Tasks over a :class:`services.tasks.store.Tasks`."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.tasks.v1 import tasks_pb2 as pb
from api.containerd.services.tasks.v1 import tasks_stubs
from services.kit.rpc import Call
from services.oci.descriptors_convert import descriptor_to_pb
from services.oci.opaque_convert import opaque_from_pb
from services.tasks import convert
from services.tasks.store import IO, Tasks


class TasksServicer:
    """Each method: parse, call, convert."""

    SERVICE = tasks_stubs.TASKS

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def Create(self, request: pb.CreateTaskRequest, call: Call) -> pb.CreateTaskResponse:
        pid = await self._tasks.create(call.namespace, request.container_id, convert.create_from_pb(request))
        return pb.CreateTaskResponse(container_id=request.container_id, pid=pid)

    async def Start(self, request: pb.StartRequest, call: Call) -> pb.StartResponse:
        return pb.StartResponse(pid=await self._tasks.start(call.namespace, request.container_id, request.exec_id))

    async def Delete(self, request: pb.DeleteTaskRequest, call: Call) -> pb.DeleteResponse:
        return convert.delete_to_pb(await self._tasks.delete(call.namespace, request.container_id))

    async def DeleteProcess(self, request: pb.DeleteProcessRequest, call: Call) -> pb.DeleteResponse:
        return convert.delete_to_pb(
            await self._tasks.delete_process(call.namespace, request.container_id, request.exec_id), request.exec_id
        )

    async def Get(self, request: pb.GetRequest, call: Call) -> pb.GetResponse:
        return pb.GetResponse(
            process=convert.process_to_pb(await self._tasks.get(call.namespace, request.container_id, request.exec_id))
        )

    async def List(self, request: pb.ListTasksRequest, call: Call) -> pb.ListTasksResponse:
        """The filter is not looked at, as in containerd."""
        return pb.ListTasksResponse(tasks=[convert.process_to_pb(p) for p in await self._tasks.list(call.namespace)])

    async def Kill(self, request: pb.KillRequest, call: Call) -> Empty:
        await self._tasks.kill(
            call.namespace, request.container_id, request.exec_id, request.signal, everything=request.all
        )
        return Empty()

    async def Exec(self, request: pb.ExecProcessRequest, call: Call) -> Empty:
        io = IO(request.stdin, request.stdout, request.stderr, request.terminal)
        spec = opaque_from_pb(request.spec, present=request.HasField("spec"))
        await self._tasks.exec(call.namespace, request.container_id, request.exec_id, spec, io)
        return Empty()

    async def ResizePty(self, request: pb.ResizePtyRequest, call: Call) -> Empty:
        await self._tasks.resize(call.namespace, request.container_id, request.exec_id, request.width, request.height)
        return Empty()

    async def CloseIO(self, request: pb.CloseIORequest, call: Call) -> Empty:
        if request.stdin:
            await self._tasks.close_stdin(call.namespace, request.container_id, request.exec_id)
        return Empty()

    async def Pause(self, request: pb.PauseTaskRequest, call: Call) -> Empty:
        await self._tasks.pause(call.namespace, request.container_id)
        return Empty()

    async def Resume(self, request: pb.ResumeTaskRequest, call: Call) -> Empty:
        await self._tasks.resume(call.namespace, request.container_id)
        return Empty()

    async def ListPids(self, request: pb.ListPidsRequest, call: Call) -> pb.ListPidsResponse:
        return convert.pids_to_pb(await self._tasks.pids(call.namespace, request.container_id))

    async def Checkpoint(self, request: pb.CheckpointTaskRequest, call: Call) -> pb.CheckpointTaskResponse:
        options = opaque_from_pb(request.options, present=request.HasField("options"))
        descriptors = await self._tasks.checkpoint(call.namespace, request.container_id, options, lease=call.lease)
        return pb.CheckpointTaskResponse(descriptors=[descriptor_to_pb(d) for d in descriptors])

    async def Update(self, request: pb.UpdateTaskRequest, call: Call) -> Empty:
        resources = opaque_from_pb(request.resources, present=request.HasField("resources"))
        await self._tasks.update(call.namespace, request.container_id, resources, dict(request.annotations))
        return Empty()

    async def Metrics(self, request: pb.MetricsRequest, call: Call) -> pb.MetricsResponse:
        return pb.MetricsResponse(
            metrics=[convert.metric_to_pb(m) for m in await self._tasks.metrics(call.namespace, list(request.filters))]
        )

    async def Wait(self, request: pb.WaitRequest, call: Call) -> pb.WaitResponse:
        return convert.wait_to_pb(await self._tasks.wait(call.namespace, request.container_id, request.exec_id))
