"""Power cuts in the middle of pulls, commits and writes: answered operations are in effect, and no other is half
done.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

import pytest

from services.kit.rpc import Channel
from tests import powercut
from tests.fake_registry import FakeRegistry
from tests.support import short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.skipif(bool(why := powercut.possible()), reason=why)]

CUTS = int(os.environ.get("POWERCUTS", "2"))
SEED = int(os.environ.get("POWERCUT_SEED", "1"))


@pytest.mark.parametrize(("snapshotter", "cuts"), [("overlayfs", CUTS - CUTS // 2), ("erofs", CUTS // 2)])
async def test_nothing_answered_is_lost(
    fake: FakeRegistry, records: Callable[[], str], snapshotter: str, cuts: int
) -> None:
    """After each cut all operations that were ever answered are checked, and interrupted pulls are repeated: none of
    their files is empty or wrong.
    """
    generator = random.Random(SEED)
    workload = powercut.Workload(fake, generator, snapshotter)
    with short_directory() as directory:
        machine = powercut.Machine(directory, records())
        try:
            await asyncio.to_thread(machine.node.up)
            for cut in range(cuts):
                async with Channel(machine.node.socket) as channel:
                    await workload.until_cut(channel, machine.cut, generator.uniform(0.3, 2.5))
                await asyncio.to_thread(machine.start)
                async with Channel(machine.node.socket) as channel:
                    lost = await workload.lost(channel, machine.node)
                known = workload.known
                print(
                    f"cut {cut + 1}: {known.answers} answers; {len(known.images)} images, {len(known.snapshots)} "
                    f"snapshots, {len(known.blobs)} blobs, {len(known.leases)} leases are there"
                )
                assert not lost, (
                    f"seed {SEED}, cut {cut + 1}: {len(lost)} things were answered and are not so:\n"
                    + "\n".join(lost[:40])
                )
        except BaseException:
            print(await asyncio.to_thread(machine.node.logs))
            raise
        finally:
            await asyncio.to_thread(machine.node.clear)
