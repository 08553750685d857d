"""The abilities of this machine on which plugins depend: its platform, and the programs that run containers.

A check answers an empty string, or the trouble, in words that say what to do.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from services.kit import errors, opt, shims
from services.kit.identifiers import quoted


class Programs:
    """Programs that containers need. Those that ``ctr install`` put below ROOT/opt come before PATH."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def environment(self) -> dict[str, str]:
        """The environment to start them with."""
        return {**os.environ, **opt.environment(self._root)}

    def which(self, program: str) -> str | None:
        """The absolute path of a program, or None."""
        return shutil.which(program, path=self.environment()["PATH"])

    def runtime_trouble(self) -> str:
        """Why the default runtime cannot run containers."""
        if not self.which("containerd-shim-runc-v2"):
            return (
                'runtime "io.containerd.runc.v2" binary not installed "containerd-shim-runc-v2": it is in '
                "Debian's "
                "package containerd"
            )
        if not self.which("runc"):
            return 'exec: "runc": executable file not found in $PATH: it is in Debian\'s package runc'
        return ""

    async def maps_ids(self) -> bool:
        """Whether the shim of the default runtime can make mounts whose ids are mapped."""
        shim = self.which("containerd-shim-runc-v2")
        return shim is None or not await shims.id_mapping_trouble(shim, self.environment())

    def shim(self, runtime: str) -> str:
        """The binary of a runtime: an absolute path is itself, ``io.containerd.runc.v2`` is containerd-shim-runc-v2.
        Errors are containerd's.
        """
        if not runtime:
            raise errors.Unknown("failed to resolve runtime path: no runtime name")
        if runtime.startswith("/"):
            if not os.path.exists(runtime):
                raise errors.Unknown(
                    f"failed to resolve runtime path: invalid custom binary path: stat {runtime}: no such file or "
                    "directory"
                )
            return runtime
        parts = runtime.split(".")
        if "/" in runtime or len(parts) < 2 or not parts[0]:
            raise errors.Unknown(
                f"failed to resolve runtime path: invalid runtime name {runtime}, correct runtime name should be "
                "either format like "
                "`io.containerd.runc.v2` or a full path to the binary"
            )
        binary = f"containerd-shim-{parts[-2]}-{parts[-1]}"
        found = self.which(binary)
        if found is None:
            raise errors.Unknown(
                f"failed to resolve runtime path: runtime {quoted(runtime)} binary not installed {quoted(binary)}: "
                "file does not exist"
            )
        return found

    async def shim_info(self, runtime: str, options: bytes) -> bytes:
        """The containerd.types.RuntimeInfo that the shim of ``runtime`` prints when it is started with ``-info``. Shims
        have this from containerd 2.0 on.
        """
        binary = self.shim(runtime)
        try:
            process = await asyncio.create_subprocess_exec(
                binary,
                "-info",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self.environment(),
            )
        except OSError as error:
            raise errors.Unknown(f"failed to run [{binary} -info]: {error.strerror}") from None
        try:
            async with asyncio.timeout(10):
                out, err = await process.communicate(options)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"failed to run [{binary} -info]") from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise errors.Unknown(
                f"failed to run [{binary} -info]: exit status {process.returncode} (stderr: "
                f"{quoted(err.decode(errors='replace'))})"
            )
        return out
