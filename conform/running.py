"""Running the rules on a service: one after the other, each with names of its own, each cleaned up behind."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conform import content_blobs, content_files, content_ingests, snapshots, snapshots_mounted, trees
from conform.content_case import ContentCase
from conform.rules import Broken, NoAnswer, NotOffered, NotRun, Rule, described
from conform.service_remote import CONTENT, SNAPSHOT, Asked, Service
from conform.snapshots import SnapshotCase
from services.kit import errors

RULES = {
    CONTENT: (*content_ingests.RULES, *content_blobs.RULES, *content_files.RULES),
    SNAPSHOT: (*snapshots.RULES, *snapshots_mounted.RULES),
}

LIMIT = 180.0
"""Seconds that one rule may take, however many calls it makes."""
CLEANING = 60.0
"""Seconds that may be spent to remove what one rule made."""


class Outcome(enum.StrEnum):
    """How a rule ended."""

    KEPT = "ok"
    BROKEN = "FAILS"
    NOT_OFFERED = "not offered"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a rule. ``expected`` and ``came`` are of one that fails; ``reason`` of one that was not kept for
    another reason; ``notes`` say what is optional and missing of one that is kept.
    """

    rule: Rule
    outcome: Outcome
    seconds: float = 0.0
    expected: str = ""
    came: str = ""
    reason: str = ""
    asked: Sequence[Asked] = ()
    """The last calls, the newest at the end."""
    notes: Sequence[str] = ()


@dataclass
class Run:
    """A run of rules on one service. ``prefix`` begins every name that it makes; ``place`` is where it mounts."""

    service: Service
    prefix: str
    mounts: Path | None = None
    """The directory below which a directory for mounts is made; the machine's own for such things if None."""
    name: str = ""
    """The snapshotter's name, if the operator says it."""
    root: bool = os.geteuid() == 0
    """Whether we may mount."""
    left: list[str] = field(default_factory=list)
    """What could not be removed, in words."""

    async def results(self, rules: Sequence[Rule]) -> AsyncGenerator[Result, None]:
        """Run these rules. Whatever ends the run, what it made is removed."""
        place = Path(tempfile.mkdtemp(prefix="splitd-conform-", dir=self.mounts))
        try:
            gone = ""
            for number, rule in enumerate(rules):
                if reason := gone or self._not_here(rule):
                    yield Result(rule, Outcome.NOT_RUN, reason=reason)
                    continue
                result = await self._tried(rule, f"{self.prefix}-{number}", place / str(number))
                if result.outcome is Outcome.BROKEN and not await self._lives():
                    gone = "the service does not answer any more"
                yield result
        finally:
            self.left += [f"mount {point}" for point in trees.unmounted(place)]
            if not any(each.startswith("mount ") for each in self.left):
                shutil.rmtree(place, ignore_errors=True)

    def _not_here(self, rule: Rule) -> str:
        """Why a rule cannot be tried here; empty if it can."""
        if not rule.mounts:
            return ""
        if not self.service.here:
            return "its mounts are on another machine"
        return "" if self.root else "mounting takes root"

    async def _lives(self) -> bool:
        """Whether the service still answers; asked after a rule in which a call had no answer, or the process went."""
        return not self.service.witness.unanswered or await self.service.answers()

    async def _tried(self, rule: Rule, prefix: str, place: Path) -> Result:
        self.service.witness.forget()
        place.mkdir()
        case = self._case(rule, prefix, place)
        begun = time.monotonic()
        try:
            async with asyncio.timeout(LIMIT) as limit:
                await rule.run(case)
        except Broken as broken:
            expected = f"{broken.what}: {broken.expected}" if broken.what else broken.expected
            return self._broken(rule, begun, expected, broken.came, case.notes)
        except (NotOffered, NotRun) as outcome:
            ended = Outcome.NOT_OFFERED if isinstance(outcome, NotOffered) else Outcome.NOT_RUN
            return Result(rule, ended, time.monotonic() - begun, reason=str(outcome), notes=case.notes)
        except TimeoutError as error:
            came = f"it had not ended after {LIMIT:g} s" if limit.expired() else f"{error}"
            return self._broken(rule, begun, "an end of the rule", came, case.notes)
        except errors.NodeError as error:
            return self._broken(rule, begun, "OK", described(error), case.notes)
        except subprocess.CalledProcessError as error:
            came = f"{shlex.join(error.cmd)}: {' '.join(str(error.stderr).split())}"
            return self._broken(rule, begun, "mounts that can be mounted", came, case.notes)
        except Exception as error:
            # what a client cannot use, such as a digest that is none
            return self._broken(rule, begun, "an answer to work with", f"{type(error).__name__}: {error}", case.notes)
        finally:
            await self._cleaned(case, place)
        return Result(rule, Outcome.KEPT, time.monotonic() - begun, notes=case.notes)

    def _broken(self, rule: Rule, begun: float, expected: str, came: str, notes: Sequence[str]) -> Result:
        asked = tuple(self.service.witness.asked)
        return Result(rule, Outcome.BROKEN, time.monotonic() - begun, expected, came, asked=asked, notes=notes)

    def _case(self, rule: Rule, prefix: str, place: Path) -> ContentCase | SnapshotCase:
        service = self.service
        if service.kind == CONTENT:
            return ContentCase(
                prefix=prefix,
                namespaced=service.namespaced,
                same_clock=service.here,
                store=service.store,
                files=service.files,
            )
        return SnapshotCase(
            prefix=prefix,
            namespaced=service.namespaced,
            same_clock=service.here,
            snapshotter=service.snapshots,
            place=place,
            name=self.name,
        )

    # -------------------------------------------------------------- cleaning up

    async def _cleaned(self, case: ContentCase | SnapshotCase, place: Path) -> None:
        """Remove what a rule made, whatever became of it."""
        asked = list(self.service.witness.asked)  # cleaning is not what the rule asked
        self.left += [f"mount {point}" for point in trees.unmounted(place)]
        left: list[str] = []
        try:
            async with asyncio.timeout(CLEANING):
                left = await (_blobs(case) if isinstance(case, ContentCase) else _snapshots(case))
        except TimeoutError:
            left = [f"names that begin with {case.prefix}: not done after {CLEANING:g} s"]
        except asyncio.CancelledError:
            self.left.append(f"names that begin with {case.prefix}: cleaning up was interrupted too")
            raise
        self.left += left
        self.service.witness.asked.clear()
        self.service.witness.asked.extend(asked)


async def _blobs(case: ContentCase) -> list[str]:
    """Remove the blobs and ingests of a case; returns what is left."""
    left: list[str] = []
    for ref in sorted(case.refs):
        try:
            await case.store.abort(ref)
        except errors.NotFound:
            continue
        except (NoAnswer, errors.Disconnected) as error:
            return [*left, f"ingest {ref} and others of {case.prefix}: {error}"]
        except errors.NodeError as error:
            left.append(f"ingest {ref}: {error}")
    for digest in sorted(case.digests, key=str):
        try:
            await case.store.delete(digest)
        except errors.NotFound:
            continue
        except (NoAnswer, errors.Disconnected) as error:
            return [*left, f"blob {digest} and others: {error}"]
        except errors.NodeError as error:
            if not isinstance(error, errors.InvalidArgument):  # it has no such algorithm
                left.append(f"blob {digest}: {error}")
    return left


async def _there(case: SnapshotCase) -> list[str]:
    """The snapshots of the case that are there: an interrupted call may be done after its name was removed."""
    with contextlib.suppress(errors.NodeError):
        return [info.name async for info in case.snapshotter.list() if info.name.startswith(case.prefix)]
    return []


async def _snapshots(case: SnapshotCase) -> list[str]:
    """Remove the snapshots of a case, children before their parents; returns what is left."""
    names = list(reversed(case.made))
    left: dict[str, str] = {}
    while names:
        left = {}
        for name in names:
            try:
                await case.snapshotter.remove(name)
            except errors.NotFound:
                continue
            except (NoAnswer, errors.Disconnected) as error:
                return [f"snapshot {name} and others of {case.prefix}: {error}"]
            except errors.NodeError as error:
                left[name] = str(error)
        again = list(dict.fromkeys([*await _there(case), *left]))
        if set(again) == set(names):
            break
        names = again
    with contextlib.suppress(errors.NodeError):
        await case.snapshotter.cleanup()
    return [f"snapshot {name}: {why}" for name, why in left.items()]
