"""The tasks service as a process: tasks.sock, and every shim of the node."""

from __future__ import annotations

import asyncio
import os
import sys

from services.kit import metrics, opt, process, rpc, settings
from services.kit.publisher import Publisher
from services.tasks import config, metrics_convert
from services.tasks.gateway import Gateway
from services.tasks.local import LocalTasks
from services.tasks.nodestart import NodeStart
from services.tasks.restart import RestartMonitor
from services.tasks.server import TasksServicer


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal; the shims stay."""
    chosen = config.load(file)
    # runtimes that ctr installed are found before the system's, by shims too
    os.environ.update(opt.environment(node.root))
    with process.owned(node.state / "tasks"):
        async with (
            rpc.Channel(node.state / "internal.sock", "gateway") as channel,
            Publisher(channel).running() as publisher,
        ):
            gateway = Gateway(channel, publisher)
            monitor = RestartMonitor(
                gateway, chosen.restart_interval, start=NodeStart(node.state / "tasks" / "node-start")
            )
            async with (
                LocalTasks(node.root, node.state, gateway, chosen, monitor.exited, monitor.gone) as tasks,
                gateway.watched(tasks.gateway_returned),
                monitor.running(tasks),
                rpc.serving(node.state / "tasks.sock", [TasksServicer(tasks)], relayed=True),
            ):
                metrics.source(lambda: figures(tasks))
                await process.until_signal()


async def figures(tasks: LocalTasks) -> list[metrics.Family]:
    """The cgroup figures of all containers. A hundred have ten thousand, so they are made in a thread."""
    return await asyncio.to_thread(metrics_convert.families, await tasks.all_metrics())


if __name__ == "__main__":
    if sys.version_info < (3, 12):  # from 3.12 on asyncio chooses it by itself: no thread for each child
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    process.run("tasks", serve)
