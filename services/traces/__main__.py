"""The traces process: it takes spans in on STATE/traces.sock, and keeps them in ROOT/traces."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack

from services.kit import exporting, later, loops, process, rpc, settings
from services.traces.config import Config
from services.traces.intake import Intake
from services.traces.live import Asking, OpenSpans
from services.traces.local import LocalStore
from services.traces.long_running import LongRunning
from services.traces.measured import measured
from services.traces.server import CollectorServicer, TracesServicer

LATE = tuple(
    f"services/traces/{name}.py" for name in ("verdict", "sentences", "attribution", "causes", "critical_path", "tree")
)
"""What judges operations: nobody may ask for it."""

_NICE = 10
"""Nobody waits for this process: whoever wants a processor gets it first."""


def kept() -> later.Code:
    """The code of what is loaded for the first judgement."""
    return later.Code(*LATE)


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal."""
    config = settings.load(Config, file, "traces")
    os.nice(_NICE)
    kept()
    node.state.mkdir(parents=True, exist_ok=True)
    with process.owned(node.root / "traces") as directory:
        store = LocalStore(directory, config)
        intake = Intake(store, config.queue)
        opened = OpenSpans(ask=Asking(node.state / exporting.ASKED))
        servicers: list[rpc.Servicer] = [
            CollectorServicer(intake),
            TracesServicer(intake, opened, LongRunning(opened.live, config.running, opened.age, opened.ask).look),
        ]
        measured(intake, opened)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(intake.running())
            await stack.enter_async_context(
                rpc.serving(node.state / "traces.sock", servicers, grace=config.grace, relayed=True)
            )
            if config.address:
                from services.traces.node_remote import RemoteNode
                from services.traces.page.node_source import NodeSource
                from services.traces.page.server import Page

                page = Page(NodeSource(intake, opened, RemoteNode(node.state).health), config.hosts)
                await stack.enter_async_context(loops.running("the page", lambda: page.serve(config.address)))
            await process.until_signal()
        store.close()


if __name__ == "__main__":
    process.run("traces", serve, traced=False)  # or each span that it takes in would make another
