"""``make demo`` shows the main job of a node, without the internet.

It builds a small image from Debian's busybox-static, serves it from Debian's docker-registry on loopback, pulls it with
Debian's ctr through the node, and runs a container with runc. For each step it prints the command, its output and its
time. If a node is up, the demo uses it and leaves it up. Otherwise the demo starts one in a temporary directory, and
removes it afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy import memory, place, splitd, supervision
from deploy.failure import Failure
from deploy.samples import MissingProgramError, Registry, busybox_image

NAMESPACE = "splitd-demo"
CONTAINER = "hello"
SCRIPT = "echo hello from $(hostname), pid $$; echo; ls /; echo; mount | head -n 1"


def main() -> None:
    parser = splitd.Parser(prog="demo", description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    place.add_arguments(parser)
    try:
        if os.geteuid() != 0:
            raise Failure("the demo starts containers: run it as root (sudo)")
        with (
            _node(parser.parse_args()) as socket,
            tempfile.TemporaryDirectory(prefix="splitd-demo") as directory,
            Registry(Path(directory)) as registry,
        ):
            show(socket, registry)
    except (Failure, MissingProgramError) as failure:
        print(f"demo: {failure}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def _node(arguments: argparse.Namespace) -> Iterator[Path]:
    """The containerd socket of a node: of one that is up, or of one that the demo starts."""
    here = place.find(arguments)
    if supervision.is_up(here):
        print(f"using the node that is up at {here.state}")
        yield here.socket
        return
    directory = Path(tempfile.mkdtemp(prefix="splitd-demo"))
    where = ["--root", str(directory / "root"), "--state", str(directory / "state")]
    print(f"no node is up at {here.state}: starting one at {directory}, for the demo only")
    try:
        if splitd.run(["up", *where]) != 0:
            raise Failure("the demo's node did not start")
        yield directory / "state" / "containerd.sock"
    finally:
        with contextlib.suppress(supervision.NotUp):
            splitd.run(["down", "--containers", "--grace", "0", *where])
        memory.forget(directory / "state")
        shutil.rmtree(directory, ignore_errors=True)


def show(socket: Path, registry: Registry) -> None:
    """Run and print the steps."""
    ctr = ["ctr", "-a", str(socket), "-n", NAMESPACE]
    image = busybox_image(cmd=("sh", "-c", SCRIPT))
    reference = registry.push(image, "hello:1")
    size = sum(len(blob) for blob in image.blobs.values())
    print(f"\nthe image {reference} has {size / (1 << 20):.1f} MiB\n")
    try:
        _run(
            (
                "1. pull it: ctr fetches, content keeps the bytes, snapshots unpacks the layer, images and metadata "
                "record "
                "it"
            ),
            [*ctr, "images", "pull", "--plain-http", reference],
            tail=3,
        )
        _run("2. what the node has now", [*ctr, "images", "ls", f"name=={reference}"])
        _run(
            "3. run it: tasks starts containerd-shim-runc-v2, which starts runc",
            [*ctr, "run", "--rm", reference, CONTAINER],
        )
        _run(
            "4. and an exit code comes back",
            [*ctr, "run", "--rm", reference, CONTAINER, "sh", "-c", "exit 3"],
            expected=3,
        )
    finally:
        subprocess.run([*ctr, "images", "rm", "--sync", reference], check=False, capture_output=True)
        subprocess.run([*ctr, "namespaces", "rm", NAMESPACE], check=False, capture_output=True)
    print(f"\nEverything went through {socket}; nothing of Debian's own containerd daemon was used.")


def _run(title: str, command: Sequence[str], *, tail: int = 0, expected: int = 0) -> None:
    print(f"{title}\n   $ {shlex.join(command)}")
    begun = time.monotonic()
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    seconds = time.monotonic() - begun
    # leaves out progress bars
    lines = [line for line in done.stdout.replace("\r", "\n").splitlines() if line.strip() and "\x1b" not in line]
    for line in lines[-tail:] if tail else lines:
        print(f"   {line}")
    print(f"   ({seconds:.2f} s, exit code {done.returncode})\n")
    if done.returncode != expected:
        raise Failure(f"{title.split(':', maxsplit=1)[0]} failed: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
