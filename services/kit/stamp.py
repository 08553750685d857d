"""splitd.stamp.v1.Stamp: which metadata store owns a directory, so that no other collector deletes from it. For the
services whose things metadata's records name.

The id is the text of the file ``store-id`` in the store's directory. The file does not exist until the store is
stamped, and is durable before Set answers.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from api.splitd.stamp.v1 import stamp_pb2 as pb
from api.splitd.stamp.v1 import stamp_stubs
from services.kit import errors, files
from services.kit.call import Call


class StampServicer:
    """The stamp of the store in ``root``, which one process serves."""

    SERVICE = stamp_stubs.STAMP

    def __init__(self, root: Path, lost: str = "") -> None:
        """With ``lost`` the owner is not told, so that nobody removes anything; DataLoss has ``lost`` as its
        message.
        """
        self._lost = lost
        self._root = root
        self._path = root / "store-id"
        self._setting = asyncio.Lock()

    async def Get(self, request: pb.GetRequest, call: Call) -> pb.GetResponse:
        self._check()
        return pb.GetResponse(store_id=await asyncio.to_thread(self._get))

    async def Set(self, request: pb.SetRequest, call: Call) -> pb.SetResponse:
        """The same id again changes nothing. Another id is refused, unless the request names the one that it
        replaces.
        """
        self._check()
        if not request.store_id:
            raise errors.InvalidArgument("store id must not be empty")
        async with self._setting:
            await asyncio.to_thread(self._set, request.store_id, request.replaces)
        return pb.SetResponse()

    def _check(self) -> None:
        if self._lost:
            raise errors.DataLoss(self._lost)

    def _get(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""

    def _set(self, store_id: str, replaces: str) -> None:
        current = self._get()
        if current == store_id:
            return
        if current and current != replaces:
            raise errors.FailedPrecondition(f"store {self._root} belongs to metadata store {current}")
        files.replace(self._path, f"{store_id}\n")
