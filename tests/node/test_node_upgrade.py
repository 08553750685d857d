"""``make upgrade``: a node goes from an earlier release to this one and back, while ten containers run and a pull is
under way.

A release is a directory, as a clone: the node runs from it, and another release replaces it as by ``git checkout``.
Both run on this environment's Python and libraries.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_registry import FakeRegistry, slow
from tests.pulls import runnable
from tests.support import TOP, Node, eventually, eventually_async, short_directory

FROM = os.environ.get("UPGRADE_FROM", "")
CODE = ("api", "client", "deploy", "gateway", "services")
CONTAINERS = 10

pytestmark = [
    pytest.mark.node,
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not FROM, reason="make upgrade says from which release"),
]


class Installed(Node):
    """A node that runs from a copy of a release, started by that release's own command."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.top = directory / "top"
        self.top.mkdir()
        self.releases = {"old": directory / "old", "new": directory / "new"}
        for name, commit in (("old", FROM), ("new", "")):
            self.releases[name].mkdir()
            if commit:
                archived = subprocess.run(
                    ["git", "-C", TOP, "archive", commit, *CODE], capture_output=True, check=True, timeout=60
                ).stdout
                subprocess.run(["tar", "-xC", self.releases[name]], input=archived, check=True, timeout=60)
            else:
                for part in CODE:
                    shutil.copytree(
                        TOP / part, self.releases[name] / part, ignore=shutil.ignore_patterns("__pycache__")
                    )

    def install(self, release: str) -> None:
        """Replace the release by another."""
        for part in CODE:
            shutil.rmtree(self.top / part, ignore_errors=True)
            shutil.copytree(self.releases[release] / part, self.top / part)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "deploy", *words, "--root", str(self.root), "--state", str(self.state)]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.top)}

    def splitd(
        self, verb: str, *arguments: str, ok: bool | None = True, seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(verb, *arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert ok is not True or done.returncode == 0, f"splitd {verb}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done

    def logs(self) -> str:
        return "\n".join(
            f"{path.name}: {line}"
            for path in sorted((self.root / "log").glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()[-10:]
        )


class Pull:
    """``splitd pull`` of an image whose layer arrives slowly."""

    def __init__(self, node: Installed, fake: FakeRegistry, name: str) -> None:
        self.node, self.fake = node, fake
        self.reference = fake.add(runnable(kib=6 << 10), name)
        self.ended: asyncio.Task[tuple[int, str]] | None = None

    async def begin(self) -> None:
        """Start it, and wait for a part of the layer."""
        self.fake.inject("blob", slow(400_000, 16 << 10), times=1000)
        before = self.fake.served("/blobs/")
        self.ended = asyncio.create_task(asyncio.to_thread(self._run))

        async def arrives() -> bool:
            return self.fake.served("/blobs/") > before + (1 << 20)

        await eventually_async(arrives, "the pull does not begin", 30)

    def _run(self) -> tuple[int, str]:
        done = subprocess.run(
            self.node.command("pull", "--plain-http", self.reference),
            env=self.node.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stderr

    async def check(self) -> None:
        """Check that it succeeds, or fails with lines that say why and the same command then succeeds; and that the
        image runs.
        """
        assert self.ended is not None
        code, said = await self.ended
        print(f"the pull ended with {code} {said.strip()!r}")
        assert code == 0 or (
            code == 1
            and all(line.startswith("splitd: ") for line in said.strip().splitlines())
            and said
            and "internal error" not in said
        ), (code, said)
        self.fake.heal()
        code, said = await asyncio.to_thread(self._run)
        assert code == 0, said
        await asyncio.to_thread(
            self.node.ctr,
            "run",
            "--rm",
            self.reference,
            f"once-{self.reference.rpartition(':')[2]}",
            "test",
            "-s",
            "/mark",
        )


def check_containers(node: Installed, before: dict[str, tuple[int, str]]) -> None:
    """Check that all run in their former processes, that exec works, and that the images' records are there."""
    eventually(lambda: node.tasks() == before, "other containers than before", 20)
    for name in before:
        assert node.out("tasks", "exec", "--exec-id", "x", name, "echo", "inside") == "inside\n"


async def test_ten_containers_and_a_pull_live_through_an_upgrade_and_its_rollback(fake: FakeRegistry) -> None:
    """All services are restarted one after the other, then supervisord; nothing is lost in either direction, and the
    containers of the old release run at the end.
    """
    with short_directory() as directory:
        node = Installed(directory)
        node.install("old")
        try:
            await asyncio.to_thread(node.up)
            box = fake.add(runnable(), "box:1")
            await asyncio.to_thread(node.ctr, "images", "pull", "--plain-http", box)
            for number in range(CONTAINERS):
                await asyncio.to_thread(node.ctr, "run", "-d", box, f"c{number}", "sleep", "10000")
            before = await asyncio.to_thread(node.tasks)
            old = [each["name"] for each in (await asyncio.to_thread(node.status))["services"]]
            assert [state for _, state in before.values()] == ["RUNNING"] * CONTAINERS

            # the earlier may not know --all, and not the services that are new
            for release, restart in (("new", ["--all"]), ("old", old)):
                pull = Pull(node, fake, f"{release}:1")
                await pull.begin()
                node.install(release)
                await asyncio.to_thread(node.splitd, "restart", *restart)
                assert (await asyncio.to_thread(node.status))["healthy"], node.logs()
                await pull.check()
                await asyncio.to_thread(check_containers, node, before)
                await asyncio.to_thread(node.down, containers=False)
                await asyncio.to_thread(node.up)
                await asyncio.to_thread(check_containers, node, before)
                if release == "new":
                    status = json.loads((await asyncio.to_thread(node.splitd, "status", "--json")).stdout)
                    assert {each["revision"] for each in status["services"]} == {status["revision"]}
            images = await asyncio.to_thread(node.out, "images", "ls", "-q")
            assert set(images.split()) == {box, box.replace("box:1", "new:1"), box.replace("box:1", "old:1")}
        finally:
            await asyncio.to_thread(node.clear)
