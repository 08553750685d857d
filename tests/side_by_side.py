"""``make test``: parts of the tests side by side, each in a pytest of its own, since tests wait half of their time.

    python -m tests.side_by_side PATH... -- PATH... -- OPTION...

Each list of paths is a part: what one pytest is told to run. The options are every part's. Four parts run at once; the
next begins when one of them ends. The output of the first part is shown as it comes, that of the others when all have
ended; the last lines say how each part ended, and after how long. The tests that failed are in pytest's cache, as after
one run: ``pytest --last-failed`` runs them again, and so does ``--last-failed`` among the options. There is no such file
where a part did not come to its end.

The exit code is pytest's: 0 if all tests passed, 1 if one failed, 2 to 4 if a part was interrupted or could not run, 5
if the options choose no test of any part.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(".pytest_cache")
FAILED = Path("v/cache/lastfailed")
"""The file of a cache that names the tests that failed."""
AT_ONCE = 4
"""Parts that run at the same time: on two cores, more are no faster."""
NOTHING_CHOSEN = 5
ENDED = {0: "passed", 1: "failed", NOTHING_CHOSEN: "no test chosen"}
"""What pytest's exit codes say of a run that came to its end."""
AGAIN = {"--lf", "--last-failed"}
FIRST = {"--ff", "--failed-first"}


class Part:
    """One pytest, which runs. Where it is ``shown`` it writes to our own output, else :meth:`show` prints what it wrote.
    Of the tests ``before``, which failed the last time, its own are in its cache.
    """

    def __init__(
        self, paths: Sequence[str], options: Sequence[str], cache: Path, before: Sequence[str], *, shown: bool
    ) -> None:
        self.name = " ".join(paths)
        self.cache = cache
        self.code = 0
        """Its exit code, once it has ended."""
        self.seconds = 0.0
        self._begun = time.monotonic()
        self._output = None if shown else tempfile.TemporaryFile()  # noqa: SIM115
        shutil.rmtree(cache, ignore_errors=True)
        remember(cache, {test: True for test in before if any(within(test, path) for path in paths)})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *paths, *options],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output and subprocess.STDOUT,
        )

    def has_ended(self) -> bool:
        """Whether it has, without waiting."""
        found = self._process.poll()
        self.code, self.seconds = found or 0, time.monotonic() - self._begun
        return found is not None

    def show(self) -> None:
        """Print what it wrote meanwhile."""
        if self._output is not None:
            self._output.seek(0)
            sys.stdout.flush()
            shutil.copyfileobj(self._output, sys.stdout.buffer)
            sys.stdout.flush()
            self._output.close()

    def terminate(self) -> None:
        """End it at once, in the middle of a test."""
        self._process.terminate()
        self._process.wait()


def remembered(cache: Path) -> dict[str, bool]:
    """The tests that failed in the last run that used this cache."""
    try:
        found: dict[str, bool] = json.loads((cache / FAILED).read_text())
    except FileNotFoundError:
        return {}
    return found


def remember(cache: Path, failed: dict[str, bool]) -> None:
    """Store them."""
    (cache / FAILED).parent.mkdir(parents=True, exist_ok=True)
    (cache / FAILED).write_text(json.dumps(failed, indent=2))


def within(test: str, path: str) -> bool:
    """Whether a test is one of those that pytest runs for this path."""
    return test == path or test.startswith((f"{path}::", f"{path.rstrip('/')}/"))


def parted(arguments: Sequence[str]) -> list[list[str]]:
    """The arguments between each ``--`` and the next."""
    found: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--":
            found.append([])
        else:
            found[-1].append(argument)
    return found


def code_of(codes: Sequence[int]) -> int:
    """The exit code of all parts together: the worst, where a part without a chosen test is as good as none."""
    return max((code if code >= 0 else 128 - code for code in codes if code != NOTHING_CHOSEN), default=NOTHING_CHOSEN)


def run(lists: Sequence[Sequence[str]], options: Sequence[str]) -> list[Part]:
    """Run the parts; returns those that were begun. Ctrl-C at a terminal reaches each, and each ends in order."""
    before = sorted(remembered(CACHE)) if {*AGAIN, *FIRST} & {*options} else []
    if before and AGAIN & {*options}:
        options = [*options, "--last-failed-no-failures=none"]  # of a part in which nothing failed, all would run
    begun: list[Part] = []
    left, running = list(lists), list[Part]()
    try:
        while left or running:
            while left and len(running) < AT_ONCE:
                number = len(begun)
                begun.append(Part(left.pop(0), options, CACHE / "parts" / str(number), before, shown=number == 0))
                running.append(begun[-1])
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except KeyboardInterrupt:
                left.clear()
            running = [part for part in running if not part.has_ended()]
    except BaseException:
        for part in begun:
            part.terminate()
            part.show()
        raise
    return begun


def main(arguments: Sequence[str]) -> int:
    *lists, options = parted(arguments)
    parts = run(lists, options)
    failed: dict[str, bool] = {}
    for part in parts:
        part.show()
        failed |= remembered(part.cache)
    codes = [part.code for part in parts]
    if len(parts) == len(lists) and ENDED.keys() >= {*codes}:
        remember(CACHE, failed)
    else:  # nobody knows what else would have failed
        (CACHE / FAILED).unlink(missing_ok=True)
    for part in parts:
        said = ENDED.get(part.code, f"ended with {part.code}")
        print(f"{said} after {part.seconds:.0f} s: {part.name}")
    for test in failed:
        print(f"FAILED {test}")
    return code_of(codes)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was written is shown all the same
    sys.exit(main(sys.argv[1:]))
