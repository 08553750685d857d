"""``make test``: parts of the tests side by side, each in a pytest of its own, since tests wait half of their time.

    python -m tests.side_by_side PATH... -- PATH... -- OPTION...

Each list of paths is a part: what one pytest is told to run. The options are every part's. The output of the first part
is shown as it comes, that of the others when all have ended; the last lines say how each part ended. The tests that
failed are in pytest's cache, as after one run: ``pytest --last-failed`` runs them again. There is no such file where a
part did not come to its end.

The exit code is pytest's: 0 if all tests passed, 1 if one failed, 2 to 4 if a part was interrupted or could not run, 5
if the options choose no test of any part.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(".pytest_cache")
FAILED = Path("v/cache/lastfailed")
"""The file of a cache that names the tests that failed."""
NOTHING_CHOSEN = 5
ENDED = {0: "passed", 1: "failed", NOTHING_CHOSEN: "no test chosen"}
"""What pytest's exit codes say of a run that came to its end."""


class Part:
    """One pytest, which runs. Where it is ``shown`` it writes to our own output, else :meth:`show` prints what it wrote."""

    def __init__(self, paths: Sequence[str], options: Sequence[str], cache: Path, *, shown: bool) -> None:
        self.name = " ".join(paths)
        self.cache = cache
        self._output = None if shown else tempfile.TemporaryFile()  # noqa: SIM115
        shutil.rmtree(cache, ignore_errors=True)  # what failed then says nothing about now
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *paths, *options],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output and subprocess.STDOUT,
        )

    def wait(self) -> int:
        """Wait until it ends; returns its exit code. Ctrl-C at a terminal reaches each part, which ends in order."""
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return self._process.wait()

    def show(self) -> None:
        """Print what it wrote meanwhile."""
        if self._output is not None:
            self._output.seek(0)
            sys.stdout.flush()
            shutil.copyfileobj(self._output, sys.stdout.buffer)
            sys.stdout.flush()
            self._output.close()

    def failed(self) -> dict[str, bool]:
        """The tests that failed, as pytest's cache has them."""
        try:
            found: dict[str, bool] = json.loads((self.cache / FAILED).read_text())
        except FileNotFoundError:
            return {}
        return found

    def terminate(self) -> None:
        """End it at once, in the middle of a test."""
        self._process.terminate()
        self._process.wait()


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


def main(arguments: Sequence[str]) -> int:
    *lists, options = parted(arguments)
    parts: list[Part] = []
    try:
        for number, paths in enumerate(lists):
            parts.append(Part(paths, options, CACHE / "parts" / str(number), shown=number == 0))
        codes = [part.wait() for part in parts]
    except BaseException:
        for part in parts:
            part.terminate()
            part.show()
        raise
    failed: dict[str, bool] = {}
    for part in parts:
        part.show()
        failed |= part.failed()
    remembered = CACHE / FAILED
    remembered.parent.mkdir(parents=True, exist_ok=True)
    if ENDED.keys() >= set(codes):
        remembered.write_text(json.dumps(failed, indent=2))
    else:  # nobody knows what else would have failed
        remembered.unlink(missing_ok=True)
    for part, code in zip(parts, codes, strict=True):
        print(f"{ENDED.get(code, f'ended with {code}')}: {part.name}")
    for test in failed:
        print(f"FAILED {test}")
    return code_of(codes)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was written is shown all the same
    sys.exit(main(sys.argv[1:]))
