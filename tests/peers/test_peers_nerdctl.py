"""The real nerdctl: each command has the same output and effect on a node as on containerd. Networks are left out,
since they need CNI plugins.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.samples import Image, Registry, busybox_image, tar_of
from tests.peer import program2
from tests.peers.sides import Sides, sides

PROGRAM = Path(sys.prefix) / "peers/nerdctl"
RUN = ("run", "--rm", "--net", "none")
PROGRESS = {r"elapsed: .*|.*\x1b\[.*\n|\n.*\x1b\[.*": "PROGRESS", r"PROGRESS\n?": ""}

pytestmark = [
    pytest.mark.node,
    pytest.mark.root,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PROGRAM.exists(), reason="no nerdctl: make peers-check builds it"),
    pytest.mark.skipif(
        not program2("containerd"),
        reason="no containerd 2, which this nerdctl wants: name its directory in SPLITD_TEST_CONTAINERD2",
    ),
]


@pytest.fixture(scope="module")
def both() -> Iterator[Sides]:
    """Runs nerdctl on both."""
    options = (
        "--address",
        "{socket}",
        "--namespace",
        "peers-{name}",
        "--data-root",
        "{dir}/data",
        "--hosts-dir",
        "{dir}/hosts",
        "--cgroup-manager",
        "cgroupfs",
    )
    with sides(str(PROGRAM), *options, env={"DOCKER_CONFIG": "{dir}", "NERDCTL_TOML": "{dir}/nerdctl.toml"}) as found:
        yield found
        for side in (found.ours, found.theirs):
            if containers := found.run(side, "ps", "-aq").stdout.split():
                found.run(side, "rm", "-f", *containers)


@pytest.fixture
def box(both: Sides, registry: Registry) -> str:
    """A busybox image that both have pulled."""
    reference = f"{registry.host}/box:1"
    both("pull", "-q", reference)
    return reference


@pytest.fixture
def container(both: Sides, box: str) -> Iterator[str]:
    """A container that runs on both."""
    both(
        "run",
        "-d",
        "--name",
        "shared",
        "--net",
        "none",
        box,
        "sh",
        "-c",
        "echo out; echo err >&2; echo data >/file; exec sleep 1000",
    )
    yield "shared"
    both("rm", "-f", "shared")


def large_image() -> Image:
    """An image of 20 MB that do not compress and 20 that do, in 300 files."""
    chance = random.Random(1)
    files = (
        (f"srv/{number}", {"data": chance.randbytes(number * 450) + b"text " * (number * 90)}) for number in range(300)
    )
    return busybox_image(tar_of(files))


def archived(path: Path) -> dict[str, object]:
    """Return the files of an image's archive: blobs by their digest, the rest as JSON."""
    found: dict[str, object] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if (file := tar.extractfile(member)) is not None:
                    data = file.read()
                    found[member.name] = (
                        hashlib.sha256(data).hexdigest() if member.name.startswith("blobs/") else json.loads(data)
                    )
    # containerd's client ends when its Transfer is answered, which of containerd is before it has written all
    except tarfile.ReadError as error:
        raise AssertionError(f"{path}, of {path.stat().st_size} bytes: {error}") from None
    return found


def test_images(both: Sides, box: str) -> None:
    """Lists, inspect, tags, and removal."""
    name = box.rpartition(":")[0]
    listed = json.loads(both("images", "--no-trunc", "--digests", "--format", "{{json .}}", box))
    assert (listed["Repository"], listed["Tag"]) == (name, "1")
    assert json.loads(both("image", "inspect", box))[0]["RepoTags"] == [box]
    both("image", "inspect", "--mode=native", box)
    both("history", "--no-trunc", "--format", "json", box)
    both("tag", box, "other:2")
    both("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference=other*")
    both("images", "-q", "--filter", "since=other:2")
    both("rmi", "other:2")
    assert "No such image" in both(
        "image", "inspect", "other:2", ok=False, varies={"(?i)no such image": "No such image"}
    )


def test_run(both: Sides, box: str) -> None:
    """Output, errors, input, exit codes, environment, user, limits, volumes, a read-only root."""
    assert both(*RUN, box, "echo", "in") == "in\n"
    assert "err" in both(*RUN, box, "sh", "-c", "echo err >&2; exit 3", ok=False)
    assert both(*RUN, "-i", box, "cat", stdin="hello\n") == "hello\n"
    assert (
        both(*RUN, "-e", "A=b", "-w", "/tmp", "-u", "7:8", box, "sh", "-c", "echo $A $PWD; id -u; id -g")
        == "b /tmp\n7\n8\n"
    )
    both(*RUN, "--read-only", box, "touch", "/x", ok=False)
    both(*RUN, "--hostname", "named", box, "hostname")
    assert both(*RUN, "-v", "{dir}:/here", box, "sh", "-c", "echo x >/here/written; cat /here/written") == "x\n"
    assert both(*RUN, "-v", "vol1:/v", box, "sh", "-c", "echo y >/v/x; cat /v/x") == "y\n"
    both("volume", "ls", "-q")
    both("volume", "rm", "vol1")
    both(*RUN, "--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", box, "true")
    both(*RUN, box, "/nothing/there", ok=False)
    both(*RUN, "--pull", "never", "nothing:1", "true", ok=False)


def test_a_container_that_runs(both: Sides, container: str) -> None:
    """exec, logs, ps, inspect, top, pause, update, rename, cp, diff, stop, start, kill, wait, rm."""
    assert both("exec", container, "echo", "in") == "in\n"
    assert both("exec", "-i", container, "cat", stdin="hello\n") == "hello\n"
    both("exec", container, "sh", "-c", "exit 5", ok=False)
    both("exec", "nobody", "true", ok=False)
    assert both("logs", container) == "out\n"
    both("logs", "-t", container)
    assert both("ps", "--format", "{{.Names}} {{.Image}} {{.Command}} {{.Status}}").startswith(container)
    assert both(
        "inspect",
        "--format",
        "{{.State.Status}} {{.State.ExitCode}} {{.Name}} {{json .Mounts}}",
        container,
        varies={"data/[0-9a-f]{8}": "data"},
    ).startswith("running 0 ")
    both("top", container, varies={r"\d+(?= )": "N", r"\d\d:\d\d": "CLOCK", "N +N +N": "N N N"})
    both("stats", "--no-stream", "--format", "{{.Name}}", container)
    both("pause", container)
    both("exec", container, "true", ok=False)
    both("unpause", container)
    both("update", "--memory", "64m", container)
    both("rename", container, "renamed")
    both("rename", "renamed", container)
    both("cp", f"{container}:/file", "{dir}/file")
    both("cp", "{dir}/file", f"{container}:/tmp/copied")
    assert both("exec", container, "cat", "/tmp/copied") == "data\n"
    assert "A /file\n" in both("diff", container)
    both("stop", "-t", "1", container)
    assert both("ps", "-a", "--format", "{{.Names}} {{.Status}}").startswith(f"{container} Exited (137)")
    both("start", container)
    both("restart", "-t", "1", container)
    both("kill", container)
    assert both("wait", container) == "137\n"
    both("rm", container)
    both("rm", container, ok=False)
    both("logs", container, ok=False)


def test_commit(both: Sides, container: str) -> None:
    """The image has the container's files and no others; only its time of creation differs."""
    both("exec", container, "rm", "/etc/group")
    both(
        "commit",
        "-m",
        "said",
        "-a",
        "somebody",
        "-c",
        'CMD ["cat", "/file"]',
        container,
        "changed:1",
        varies={"sha256:[0-9a-f]{64}": "IMAGE"},
    )
    assert both(*RUN, "changed:1") == "data\n"
    both(*RUN, "changed:1", "cat", "/etc/group", ok=False)
    both("history", "--format", "{{.Comment}} {{.Size}}", "changed:1")
    both("image", "inspect", "--format", "{{json .Config}} {{.Author}} {{len .RootFS.Layers}}", "changed:1")
    both("rmi", "-f", "changed:1", varies={"sha256:[0-9a-f]{64}": "IMAGE"})


def test_save_and_load(both: Sides, box: str) -> None:
    """The archives have the same contents; the loaded image runs."""
    both("save", "-o", "{dir}/save.tar", box)
    ours, theirs = map(archived, both.files("save.tar"))
    assert ours == theirs
    both("rmi", "-f", box)
    both(*RUN, "--pull", "never", box, "true", ok=False)
    # nerdctl says it for each time that it was told "saved", as far as it has looked before the end
    told = {r"(?s)\A.*?(Loaded image: [^\n]*\n)\1*\Z": r"\1"}
    assert both("load", "-i", "{dir}/save.tar", varies=told) == f"Loaded image: {box}\n"
    assert both(*RUN, "--pull", "never", box, "echo", "in") == "in\n"
    both("load", "-i", "{dir}/nothing.tar", ok=False)


def test_export_and_import(both: Sides, container: str) -> None:
    """The exported file system is complete, and becomes an image again."""
    both("export", "-o", "{dir}/export.tar", container)
    names = []
    for path in both.files("export.tar"):
        with tarfile.open(path) as tar:
            names.append([(m.name, m.mode, m.uid, m.gid, m.size, m.linkname) for m in tar.getmembers()])
    assert sorted(names[0]) == sorted(names[1])
    # from 2.3 on containerd names the index, too
    told = {
        r"(?m)^(Importing\t)?\S+\tsaved\t\n": "",
        r"(?m)^(Importing\t)?application/vnd\S+ \S+\n": "",
        r"Importing\t": "",
    }
    both("import", "{dir}/export.tar", "imported:1", varies=PROGRESS | told | {"sha256:[0-9a-f]{64}": "IMAGE"})
    assert both(*RUN, "imported:1", "cat", "/file") == "data\n"
    both("rmi", "imported:1", varies={"sha256:[0-9a-f]{64}": "IMAGE"})


@pytest.mark.parametrize("kind", ["zstd", "estargz", "zstdchunked", "uncompress"])
def test_image_convert(both: Sides, box: str, registry: Registry, kind: str) -> None:
    """The digest is the same, though it is written in small pieces; the image runs, and can be pushed, pulled and
    removed.
    """
    converted = f"{registry.host}/{kind}:1"
    digest = both("image", "convert", f"--{kind}", "--oci", box, converted, varies=PROGRESS)
    assert both(*RUN, converted, "echo", "in") == "in\n"
    both("push", "-q", converted)
    both("rmi", "-f", converted)
    both("pull", "-q", f"{converted}@{digest.strip()}")
    both("tag", f"{converted}@{digest.strip()}", converted)
    assert both(*RUN, converted, "echo", "in") == "in\n"
    both("rmi", converted)


def test_a_large_image_is_converted(both: Sides, registry: Registry) -> None:
    """Some 40 MB in files of all sizes: thousands of small writes on one stream."""
    large = registry.push(large_image(), "large:1")
    both("pull", "-q", large)
    for kind in ("estargz", "zstd"):
        both("image", "convert", f"--{kind}", "--oci", large, f"{kind}:large", varies=PROGRESS)
    both("rmi", "-f", "estargz:large", "zstd:large", large)


def test_what_is_not_there(both: Sides, registry: Registry) -> None:
    """The errors have the same words."""
    # we say who answered what
    both("pull", "-q", f"{registry.host}/nothing:1", ok=False, varies={r"[\d.:]+ HEAD \S+ 404 Not Found: ": ""})
    both("push", "-q", f"{registry.host}/nothing:1", ok=False)
    both("rmi", "nothing:1", ok=False)
    both("inspect", "nothing", ok=False)


def test_prune(both: Sides, box: str) -> None:
    """Everything that no container needs is removed. It comes last, since it removes images that other tests have
    pulled.
    """
    # the index of an import, which containerd has a name for from 2.3 on
    both("image", "prune", "-f", varies={r"(?s)\ADeleted Images:\n.*": ""})
    for side in (both.ours, both.theirs):
        both.run(side, "image", "prune", "-a", "-f")
    assert both("images", "-q") == ""
    assert both("ps", "-aq") == ""
