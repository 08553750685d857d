"""The files that a process has when supervisord starts it: standard input, output and error.

After the fork, supervisord closes every number below its limit of open files one by one, in Python: that takes 15 ms
for a node's 16,384, before each process can start. Here the kernel closes them at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from supervisor.process import Subprocess


def at_once(prepare: Callable[[Any], None]) -> Callable[[Any], None]:
    """The method by which supervisord gives a forked process its files, without the loop."""

    def prepared(process: Any) -> None:
        options = process.config.options
        limit, options.minfds = options.minfds, 0  # of this copy of supervisord, which becomes the process
        prepare(process)
        os.closerange(3, limit)

    return prepared


def install() -> None:
    Subprocess._prepare_child_fds = at_once(Subprocess._prepare_child_fds)
