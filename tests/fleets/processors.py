"""A share of this machine's processors for what runs on a host, by a cgroup with the controller cpu.

The nodes of one machine share its processors: one that pulls alone has all of them, one of three a third. Real nodes have
the same ones, alone or not, and so have nodes with a share.

What is started in a group stays in it with its children, shims too. Containers do not: runc gives them cgroups of their
own.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from services.kit import errors
from services.kit.cgroups import hierarchies

PERIOD = 20_000
"""Microseconds after which a group may run again that has had its share: with the kernel's 100,000, two threads with half
of a processor would stand still for 75 ms each time.
"""
LEAST = 0.05
"""The smallest share, in processors: the kernel's smallest quota is a millisecond."""


class Group:
    """A cgroup for the processes of one host. FailedPrecondition if this machine has none with the controller cpu. It is
    removed by :func:`remove`.
    """

    def __init__(self, name: str) -> None:
        limits, counts = _tops()
        self._limits, self._counts = limits / name, counts / name
        try:
            for directory in dict.fromkeys((self._limits, self._counts)):
                directory.mkdir()
        except OSError as error:
            raise errors.FailedPrecondition(f"no share of the processors: {error.filename}: {error.strerror}") from None
        self._unified = (self._limits / "cpu.max").exists()
        procs = shlex.join(str(directory / "cgroup.procs") for directory in dict.fromkeys((self._limits, self._counts)))
        self.inside = ("/bin/sh", "-c", f'for each in {procs}; do echo 0 > "$each" || exit 1; done; exec "$@"', "sh")
        """The beginning of the command line of a program that is to run in it."""

    def limit(self, processors: float | None) -> None:
        """Give its processes so many processors together, from now on; None: all that are free."""
        if processors is not None and processors < LEAST:
            raise ValueError(f"{processors:g} processors: the least is {LEAST:g}")
        quota = None if processors is None else round(processors * PERIOD)
        if self._unified:
            (self._limits / "cpu.max").write_text(f"{'max' if quota is None else quota} {PERIOD}")
        else:
            (self._limits / "cpu.cfs_period_us").write_text(str(PERIOD))
            (self._limits / "cpu.cfs_quota_us").write_text(str(-1 if quota is None else quota))

    def used(self) -> float:
        """Seconds of a processor that its processes have taken so far."""
        if not self._unified:
            return int((self._counts / "cpuacct.usage").read_text()) / 1e9
        lines = dict(line.split() for line in (self._counts / "cpu.stat").read_text().splitlines())
        return int(lines["usage_usec"]) / 1e6


def groups(prefix: str) -> Iterator[Path]:
    """The directories of all groups whose names begin so."""
    for top, _ in hierarchies().values():
        yield from top.glob(f"{prefix}*")


def remove(prefix: str) -> bool:
    """Remove these groups. Whether none is left: one that has processes is."""
    for directory in groups(prefix):
        with contextlib.suppress(OSError):
            directory.rmdir()
    return not any(groups(prefix))


def _tops() -> tuple[Path, Path]:
    """Below which directories groups are made: for their limits, and for what they have used."""
    found = hierarchies()
    by_name = {name: top for names, (top, _) in found.items() for name in names.split(",")}
    if "cpu" in by_name and "cpuacct" in by_name:
        return by_name["cpu"], by_name["cpuacct"]
    if "" not in found or "cpu" not in ((top := found[""][0]) / "cgroup.controllers").read_text().split():
        raise errors.FailedPrecondition("no share of the processors: no cgroup of this machine has the controller cpu")
    try:
        (top / "cgroup.subtree_control").write_text("+cpu")
    except OSError as error:
        raise errors.FailedPrecondition(
            f"no share of the processors: {top} gives the controller cpu to no cgroup below it: {error.strerror}"
        ) from None
    return top, top
