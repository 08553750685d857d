"""Loading of tasks at a start, without any shim."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.kit import errors
from services.tasks.bundle import TASKS
from services.tasks.burial import Burial
from services.tasks.dead_shim import Sighting
from services.tasks.ending import Ending
from services.tasks.loading import Loading
from services.tasks.names import Names
from tests.unit.tasks.tasks_fakes import ADDRESS, connections, service, task


async def test_remains_of_ended_tasks_are_removed(place: Path) -> None:
    """Work directories, exits and checkpoints are removed. Those of a task whose bundle was removed by hand, and which
    is checked later than the others, stay.
    """
    going_on = asyncio.Event()
    around = service(place, connections(going_on.wait))  # type: ignore[arg-type]
    names = Names()
    burial = Burial(around, names)
    (around.state / TASKS).mkdir(parents=True)
    for name in ("gone", "runs"):
        one = task(around, name)
        around.notes.note_exit(one.bundle)
        around.notes.checkpoint_of(one.bundle)
        one.bundle.delete()
        one.bundle.work.mkdir(parents=True)
        if name == "runs":
            around.notes.write_sighting(one.bundle, Sighting("/bin/shim", ADDRESS))
    loading = Loading(around, names, burial, Ending(around, names, burial), seconds=0.01)
    await loading.load()
    try:
        assert list(names.found) == [("ns", "runs")]
        for base in (around.root / TASKS / "ns", around.notes.checkpoints, around.state / "tasks/exits"):
            assert [path.name.removeprefix("ns:") for path in base.iterdir()] == ["runs"]
    finally:
        await around.background.cancel()


@pytest.mark.parametrize("boot", [None, "", "this", "a former one"])
async def test_an_empty_address_is_believed_after_a_reboot_only(place: Path, boot: str | None) -> None:
    """A power cut leaves such files where STATE is on a disk, but no shim. Otherwise one may run."""
    around = service(place)
    one = task(around)
    (one.bundle.path / "bootstrap.json").write_text("")
    one.bundle.write_program("/bin/true")
    if boot is not None:
        around.notes.note_boot()
        if boot != "this":
            (around.state / "tasks/boot").write_text(boot)
    names = Names()
    burial = Burial(around, names)
    try:
        await Loading(around, names, burial, Ending(around, names, burial)).load()
        assert one.bundle.path.exists() is (boot != "a former one")
        assert names.is_taken(("ns", "c")) is (boot != "a former one")
        assert not around.notes.machine_has_rebooted()
    finally:
        await around.background.cancel()


async def test_a_service_that_ends_when_a_task_has_just_gone_ends(place: Path) -> None:
    """The code that loads the task waits for its burial, and is cancelled before it has noticed that this is done."""

    async def refused() -> None:
        raise errors.Unavailable("connect") from ConnectionRefusedError()

    ended = asyncio.Event()

    def on_gone(*_key: str) -> None:
        for each in around.background:
            each.cancel()
        ended.set()

    around = service(place, connections(refused), on_gone=on_gone)
    task(around).bundle.write_program("/bin/true")
    names = Names()
    burial = Burial(around, names, end=lambda _seen, _seconds: [])
    loading = asyncio.ensure_future(Loading(around, names, burial, Ending(around, names, burial), seconds=60).load())
    await asyncio.wait_for(ended.wait(), 10)
    await asyncio.wait_for(around.background.wait(), 10)
    await loading
