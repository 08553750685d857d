"""``splitd logs SERVICE``: what a service logged; supervisord's own log is "supervisord"."""

from __future__ import annotations

import argparse
import codecs
import os
import time
from pathlib import Path

from client.shown import page, say
from deploy import place
from deploy.failure import Failure, mistyped
from deploy.processes import NAMES

HELP = "the last lines that a service logged; without a service, of each"
LOGS = (*NAMES, "supervisord")
CHUNK = 64 << 10


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", nargs="?", metavar="SERVICE", help=", ".join(LOGS))
    parser.add_argument("-n", "--lines", type=int, default=100, metavar="N", help="how many lines (default 100)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is logged from now on")


def run(arguments: argparse.Namespace) -> int:
    name = arguments.service
    if name is not None and name not in LOGS:
        raise Failure(mistyped(name, list(LOGS), "service"), 2)
    if name is None and arguments.follow:
        raise Failure(f"say which service to follow ({', '.join(LOGS)})", 2)
    if arguments.lines < 0:
        raise Failure(f"--lines {arguments.lines}: say how many lines, 0 or more", 2)
    here = place.find(arguments)
    if name is None:
        for each in LOGS:
            say(f"==> {each} <==")
            page(_last(here.log(each), arguments.lines, missing_ok=True))
        return 0
    path = here.log(name)
    page(_last(path, arguments.lines))
    if arguments.follow:
        _follow(path)
    return 0


def _last(path: Path, lines: int, *, missing_ok: bool = False) -> str:
    """The last ``lines`` of the log, from the rotated file before it too if it is short."""
    found: list[str] = []
    for each in (path, path.with_name(path.name + ".1")):
        if each.exists() and len(found) < lines:
            found = _tail(each, lines - len(found)) + found
        elif each == path and not each.exists() and not missing_ok:
            raise Failure(f"there is no log at {path}: no node was started with this root")
    return "".join(line + "\n" for line in found)


def _tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file, read from its end."""
    if lines <= 0:
        return []
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        data = b""
        while position > 0 and data.count(b"\n") <= lines:
            step = min(CHUNK, position)
            position = file.seek(position - step)
            data = file.read(step) + data
    return data.decode(errors="replace").removesuffix("\n").split("\n")[-lines:] if data else []


def _follow(path: Path) -> None:
    """Print what is appended, over rotations, until interrupted."""
    file = path.open("rb")
    file.seek(0, os.SEEK_END)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        while data := file.read(CHUNK):
            page(decoder.decode(data))
        try:
            replaced = os.stat(path).st_ino != os.fstat(file.fileno()).st_ino or os.stat(path).st_size < file.tell()
        except FileNotFoundError:
            replaced = False  # between the two steps of a rotation
        if replaced:
            file.close()
            file = path.open("rb")
        else:
            time.sleep(0.2)
