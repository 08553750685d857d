"""Starting the worker programs of this service, and ending them with the call that they work for."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

from services.kit import errors, tracing


async def run(program: str, *arguments: str, file: int, started: Callable[[], None] = lambda: None) -> list[str]:
    """Run ``services.snapshots.diff.PROGRAM`` with ``file`` as its standard input; the words of its answer after ``ok``.

    What it refuses is Unknown, with its text, as containerd classifies such errors (but for what is not implemented); a worker that ends without an answer is Internal. If the caller is cancelled the worker is killed, and this
    returns when it is gone. ``-S`` and the short module path keep its start below 30 ms.
    """
    environment = {**os.environ, **tracing.environment(), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-P", "-c", f"from services.snapshots.diff.{program} import main; main()", str(os.getpid()), *arguments,
        stdin=file, stdout=asyncio.subprocess.PIPE, env=environment)
    try:
        started()
        assert process.stdout is not None
        output = await process.stdout.read()
        code = await process.wait()
    except BaseException:
        process.kill()
        await asyncio.shield(process.wait())
        raise
    *_, answer = output.decode("utf-8", "backslashreplace").splitlines() or [""]
    verdict, _, rest = answer.partition(" ")
    if verdict == "ok" and code == 0:
        return rest.split(" ")
    if verdict == "error":
        kind = errors.Unimplemented if rest.endswith(errors.Unimplemented.suffix) else errors.Unknown
        raise kind(rest)
    raise errors.Internal(f"the {program} worker ended with {_how(code)}, see the service's log")


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
