"""splitd.stamp.v1.Stamp: whose store a directory is, so that no collector but its own deletes from it.

The id is the text of the file ``store-id`` in the store's directory, absent until the store is stamped.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

from api.splitd.stamp.v1 import stamp_pb2 as pb
from services.content.disk import write_durably
from services.kit import errors
from services.kit.rpc import Call


class StampServicer:
    """The stamp of the store in ``root``."""

    SERVICE = pb.DESCRIPTOR.services_by_name["Stamp"]

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = str(root / "store-id")
        self._setting = threading.Lock()

    async def Get(self, request: pb.GetRequest, call: Call) -> pb.GetResponse:
        return pb.GetResponse(store_id=await asyncio.to_thread(self._get))

    async def Set(self, request: pb.SetRequest, call: Call) -> pb.SetResponse:
        if not request.store_id:
            raise errors.InvalidArgument("store id must not be empty")
        await asyncio.to_thread(self._set, request.store_id)
        return pb.SetResponse()

    def _get(self) -> str:
        if not os.path.exists(self._path):
            return ""
        with open(self._path, encoding="utf-8") as file:
            return file.read().strip()

    def _set(self, store_id: str) -> None:
        with self._setting:
            current = self._get()
            if current == store_id:
                return
            if current:
                raise errors.FailedPrecondition(f"store {self._root} belongs to metadata store {current}")
            write_durably(self._path, f"{store_id}\n".encode(), f"{self._path}.tmp")
