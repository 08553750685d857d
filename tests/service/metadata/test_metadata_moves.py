"""``splitd metadata``, killed with -9 at each of its points and begun again, and beside a metadata process that runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.etcd.client import connect
from services.etcd.config import EtcdConfig
from services.kit.process import owned
from services.metadata import moving, schema
from services.metadata.etcd import EtcdTransactions
from services.metadata.etcd_owner import this_node
from services.metadata.store import Image
from services.metadata.transactions import Key, Reader, Transaction
from tests import copies
from tests.etcd_servers import etcd
from tests.support import TOP, splitd

MIGRATE = """
import asyncio, sys
from pathlib import Path
from services.metadata import moving

one, other = (moving.Side(path, lambda path=path: moving.sqlite(Path(path))) for path in sys.argv[1:])
print(asyncio.run(moving.migrate(one, other)).sum)
"""


KILLED = """
import os, sys
from pathlib import Path
from deploy.splitd import answered
import deploy.verbs.metadata, services.etcd.client, services.metadata.etcd

points, words = sys.argv[1].split(), sys.argv[2:]
for point in points:
    Path(os.environ["SPLITD_FAULTS"], point).touch()
    if not (child := os.fork()):
        os._exit(answered(words))
    print(point, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""A splitd command, killed at each of several points, one after the other."""


async def fill(path: Path, count: int = 2200) -> None:
    def work(tx: Transaction) -> None:
        for number in range(count):
            image = Image(name=f"i{number:05}", digest=f"sha256:{number:064}", media_type="m", size=number)
            schema.IMAGES.put(tx, "default", image.name, value=image)

    async with moving.sqlite(path) as store:
        await store.write(work)


async def everything(path: Path) -> list[tuple[Key, bytes]]:
    def all_of(reader: Reader) -> list[tuple[Key, bytes]]:
        return list(reader.scan(()))

    async with moving.sqlite(path) as store:
        return store.view(all_of)


def run(faults: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        check=False,
        cwd=TOP,
        env=os.environ | {"SPLITD_FAULTS": str(faults)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def migrate(faults: Path, one: str, other: str) -> subprocess.CompletedProcess[str]:
    program = faults.with_name("migrate.py")
    program.write_text(MIGRATE)
    command = [sys.executable, str(program), one, other]
    return copies.run(command, os.environ | {"SPLITD_FAULTS": str(faults)}, 60)


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    directory = tmp_path / "faults"
    directory.mkdir()
    return directory


POINTS = ["chunk", "compared", "arrived", "left"]


@pytest.mark.parametrize("point", POINTS)
async def test_a_migration_that_is_killed_ends_right_the_next_time(point: str, faults: Path, tmp_path: Path) -> None:
    """Whichever point, exactly one of the stores can be used in between, and it has everything."""
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    await fill(one)
    before = await everything(one)
    (faults / f"metadata.moving.{point}").touch()
    assert migrate(faults, str(one), str(other)).returncode == -9
    usable = []
    for path in (one, other):
        async with moving.sqlite(path) as store:
            if store.view(schema.MOVING.get) is None:
                usable.append(path)
    assert usable == ([] if point == "left" else [one])  # the last step makes the other usable
    if usable:
        assert await everything(one) == before
    done = migrate(faults, str(one), str(other))
    assert done.returncode == 0, done.stderr
    assert await everything(other) == before
    assert not list(faults.iterdir())


async def test_a_migration_goes_on_with_what_changed_in_between(faults: Path, tmp_path: Path) -> None:
    """The node ran once more on the source after the first attempt was killed."""
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    await fill(one)
    (faults / "metadata.moving.arrived").touch()
    assert migrate(faults, str(one), str(other)).returncode == -9
    async with moving.sqlite(one) as store:
        await store.write(lambda tx: tx.delete(("image", "default", "i00000")))
        await store.write(lambda tx: tx.put(("image", "default", "i00001"), tx.get(("image", "default", "i00002"))))  # type: ignore[arg-type]
    changed = await everything(one)
    assert migrate(faults, str(one), str(other)).returncode == 0
    assert await everything(other) == changed


def verb(faults: Path, root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    where = ("--root", root, "--state", root / "state")
    return splitd("metadata", *words, *where, env={"SPLITD_FAULTS": str(faults)}, seconds=60, ok=None)


@pytest.mark.parametrize("point", ["chunk", "compared"])
async def test_an_import_that_is_killed_ends_right_the_next_time(point: str, faults: Path, tmp_path: Path) -> None:
    """Until then, a metadata process would not start on it."""
    one, other, file = tmp_path / "one", tmp_path / "other", str(tmp_path / "file")
    (one / "metadata").mkdir(parents=True)
    await fill(one / "metadata/metadata.db")
    exported = verb(faults, one, "export", file)
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.startswith("exported 2,200 records (sha256:")
    (faults / f"metadata.moving.{point}").touch()
    assert verb(faults, other, "import", file).returncode == -9
    refused = verb(faults, other, "export", str(tmp_path / "no"))
    assert refused.returncode == 1
    assert "being moved to SQLite" in refused.stderr
    imported = verb(faults, other, "import", file)
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.startswith("imported: 2,200 records (sha256:")
    assert imported.stdout.endswith(f" --root {other}\n")
    assert await everything(other / "metadata/metadata.db") == await everything(one / "metadata/metadata.db")
    assert verb(faults, other, "import", file).stdout.startswith("was imported already")


async def test_nothing_moves_while_a_metadata_process_runs(faults: Path, tmp_path: Path) -> None:
    """It holds the lock of its directory."""
    root = tmp_path / "node"
    with owned(root / "metadata"):
        await fill(root / "metadata/metadata.db", 1)
        for words in (("export", "file"), ("import", "file")):
            refused = verb(faults, root, *words)
            assert refused.returncode == 1
            assert "the metadata service of this node runs" in refused.stderr
            assert refused.stderr.endswith(" first; containers keep running\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say what to do: metadata export|import|migrate"),
        (("export", "/tmp/no-such-directory/file"), "has no records"),
        (("import", "/tmp/no-such-directory/file"), "/tmp/no-such-directory/file: No such file or directory"),
        (("import", "/etc/hostname"), "/etc/hostname is no export of metadata"),
    ],
)
def test_mistakes_are_told_in_words(words: tuple[str, ...], said: str, faults: Path, tmp_path: Path) -> None:
    """In one line."""
    refused = verb(faults, tmp_path / "node", *words)
    assert refused.returncode in (1, 2)
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert said in refused.stderr


async def test_records_move_to_a_real_etcd_and_back(faults: Path, tmp_path: Path) -> None:
    """Killed on the way at each point, and repeated. The store that they have left says where they are. Another node
    takes them over once this one is down.
    """
    root, config = tmp_path / "node", tmp_path / "config.toml"
    (root / "metadata").mkdir(parents=True)
    await fill(root / "metadata/metadata.db")
    before = await everything(root / "metadata/metadata.db")
    with etcd() as cluster:
        text = f"[metadata.etcd]\nendpoints = {json.dumps(cluster.endpoints)}\n"
        config.write_text(text)

        def metadata(*words: str) -> subprocess.CompletedProcess[str]:
            return verb(faults, root, *words, "--config", str(config))

        def killed(to: str, *points: str) -> None:
            where = ("--root", str(root), "--state", str(root / "state"), "--config", str(config))
            said = run(faults, KILLED, " ".join(points), "metadata", "migrate", "--to", to, *where)
            assert said.stdout.splitlines() == [f"{point} -9" for point in points], said.stderr

        moves = [f"metadata.moving.{point}" for point in POINTS]
        killed("etcd", "metadata.etcd.before", "metadata.etcd.written", *moves)
        moved = metadata("migrate", "--to", "etcd")
        assert moved.returncode == 0, moved.stderr
        assert "2,200 records (sha256:" in moved.stdout
        assert f'set [metadata] store = "etcd" in {config}' in moved.stdout
        refused = metadata("export", str(tmp_path / "file"))
        assert "the node's records are in etcd (127.0.0.1:" in refused.stderr
        config.write_text(f'[metadata]\nstore = "etcd"\n{text}')
        exported = metadata("export", str(tmp_path / "file"))
        assert exported.stdout.startswith("exported 2,200 records"), exported.stderr
        other = tmp_path / "other"
        mine = ("migrate", "--to", "etcd", "--config", str(config))
        refused = verb(faults, other, *mine)
        assert refused.returncode == 1
        assert "--take-over" in refused.stderr
        taken = verb(faults, other, *mine, "--take-over")
        assert "nothing was to be moved: it has 2,200 records" in taken.stdout, taken.stderr
        assert metadata("migrate", "--to", "sqlite").returncode == 1  # it is the other's now
        client = connect(EtcdConfig(endpoints=cluster.endpoints))
        mirror, node = tmp_path / "mirror.db", this_node(other / "metadata")
        async with EtcdTransactions(client, "/splitd/metadata", mirror, node).running():
            refused = await asyncio.to_thread(metadata, "migrate", "--to", "etcd", "--take-over")
            assert refused.returncode == 1
            assert "serves the records at /splitd/metadata now. Stop it first" in refused.stderr
        await client.close()
        assert metadata("migrate", "--to", "etcd", "--take-over").returncode == 0
        for path in (root / "metadata").glob("metadata.db*"):  # else nothing would have to be copied
            path.unlink()
        killed("sqlite", "metadata.etcd.listing", *moves)
        back = metadata("migrate", "--to", "sqlite")
        assert back.returncode == 0, back.stderr
    assert await everything(root / "metadata/metadata.db") == before
    assert not list((root / "metadata").glob("moving*"))
