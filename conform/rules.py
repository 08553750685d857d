"""What a rule is, and the words in which it fails.

A rule is a coroutine function with one argument, the case: the service under test and this run's own names in it. Its
docstring is the promise. It ends in one of four ways: it returns; :class:`Broken`, the promise is not kept;
:class:`NotOffered`, the promise is optional and the service does not make it; :class:`NotRun`, it cannot be tried here.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from services.kit import errors

WORDS = "containerd's words"
"""Errors have containerd's messages, and not only its codes: some clients match on them."""
ORDER = "ordered lists"


class Broken(AssertionError):
    """The service does not keep the promise: it should have answered ``expected``, and ``came`` came."""

    def __init__(self, expected: str, came: str, what: str = "") -> None:
        super().__init__(f"{what}: expected {expected}; came {came}" if what else f"expected {expected}; came {came}")
        self.expected, self.came, self.what = expected, came, what


class NotOffered(Exception):
    """The service does not offer what is optional."""


class NotRun(Exception):
    """The rule cannot be tried here, for this reason."""


class NoAnswer(errors.DeadlineExceeded):
    """A call that the service did not answer in the time that we gave it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A promise of an interface. ``run`` takes a case and tries it."""

    name: str
    promise: str
    source: str
    """Where the promise comes from: containerd's interface, its documents or source, or an issue."""
    run: Callable[[Any], Awaitable[None]]
    optional: str = ""
    """The capability that the promise belongs to, if a service may lack it."""
    mounts: bool = False
    """It mounts what the service answers, which takes root."""

    @property
    def title(self) -> str:
        """The name as people write it."""
        return self.name.replace("_", "-")


F = TypeVar("F", bound=Callable[[Any], Awaitable[None]])


def collect(into: list[Rule]) -> Callable[..., Callable[[F], F]]:
    """A decorator that makes a rule of a function, and adds it to ``into``."""

    def rule(*, source: str, optional: str = "", mounts: bool = False) -> Callable[[F], F]:
        def add(function: F) -> F:
            promise = " ".join((inspect.getdoc(function) or "").split())
            into.append(Rule(function.__name__.rstrip("_"), promise, source, function, optional, mounts))
            return function

        return add

    return rule


# ------------------------------------------------------------------------------------------ what is checked


def equal(came: object, expected: object, what: str = "") -> None:
    """Check that what came is what was expected."""
    if came != expected:
        raise Broken(shown(expected), shown(came), what)


def holds(ok: object, expected: str, came: object) -> None:
    """Check that it is as expected in words."""
    if not ok:
        raise Broken(expected, shown(came))


LONGEST = 300


def shown(value: object) -> str:
    """A value as one bounded line."""
    if isinstance(value, str):
        text = value if value.isprintable() and value else repr(value)
    elif isinstance(value, errors.NodeError):
        text = described(value)
    elif isinstance(value, bytes | bytearray) and len(value) > 40:
        text = f"{len(value)} bytes beginning with {bytes(value[:20])!r}"
    else:
        text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def described(error: errors.NodeError) -> str:
    """An error as a client has it: the code's name and the message."""
    if isinstance(error, NoAnswer | errors.Disconnected):
        return str(error)
    return f"{code_name(type(error))}: {error}"


def code_name(kind: type[errors.NodeError]) -> str:
    """The name in gRPC of the code of a class of errors."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper()


async def eventually(condition: Callable[[], Awaitable[bool]], expected: str, seconds: float = 15.0) -> None:
    """Wait until it is as expected, asking every 20 ms."""
    end = time.monotonic() + seconds
    while not await condition():
        holds(time.monotonic() < end, f"{expected} within {seconds:g} s", "it is not")
        await asyncio.sleep(0.02)


class Refusal:
    """The error that a call was refused with; None until then."""

    error: errors.NodeError | None = None


@dataclass
class Case:
    """A rule's view of the service under test: what it may expect, and names that nobody else has."""

    prefix: str = field(default_factory=lambda: f"conform-{uuid.uuid4().hex[:8]}")
    """Every ref, key and name of this case begins with it. It has letters, digits and dashes only."""
    strict: bool = False
    """All that is optional is promised too, but for ``lacks``: so our own services are tested."""
    lacks: frozenset[str] = frozenset()
    namespaced: bool = False
    """Behind it are metadata's records: it is a gateway or a containerd, not a raw service."""
    containerd: bool = False
    """It is containerd itself, which is not tested for promises where we do better."""
    same_clock: bool = True
    """It is on this machine, so its times are ours."""
    notes: list[str] = field(default_factory=list)
    """What the service does not offer, of this rule."""

    def promised(self, what: str) -> bool:
        """Whether this optional promise must be kept."""
        return self.strict and what not in self.lacks

    def optional(self, what: str, ok: object, expected: str, came: object) -> None:
        """As :func:`holds` where ``what`` is promised; elsewhere it is noted as not offered."""
        if ok:
            return
        if self.promised(what):
            raise Broken(expected, shown(came), what)
        note = f"{what}: expected {expected}; came {shown(came)}"
        if note not in self.notes:
            self.notes.append(note)

    def lacking(self, what: str, why: str) -> Exception:
        """What to raise if the service shows that it lacks ``what``."""
        return Broken(what, why) if self.promised(what) else NotOffered(f"{what}: {why}")

    @contextlib.contextmanager
    def offered(self, what: str) -> Iterator[None]:
        """The block is about something optional: where it is not promised, a promise that is not kept is not
        offered.
        """
        try:
            yield
        except Broken as broken:
            if self.promised(what):
                raise
            raise NotOffered(f"{what}: {broken}") from broken
        except errors.Unimplemented as error:
            raise self.lacking(what, described(error)) from error

    @contextlib.contextmanager
    def refused(
        self, kind: type[errors.NodeError] | tuple[type[errors.NodeError], ...], words: str = ""
    ) -> Iterator[Refusal]:
        """The block ends with an error of this class; its message matches ``words``, where words are promised."""
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(map(code_name, kinds)) if errors.NodeError not in kinds else "an error"
        found = Refusal()
        try:
            yield found
        except errors.NodeError as error:
            # a process that died, or hangs, has refused nothing
            if not isinstance(error, kinds) or isinstance(error, NoAnswer | errors.Disconnected):
                raise Broken(expected, described(error)) from error
            found.error = error
        if found.error is None:
            raise Broken(expected, "OK")
        if words and not re.search(words, str(found.error)):
            self.optional(WORDS, False, f"a message that matches /{words}/", found.error)

    def within(self, moment: int, earliest: int, latest: int, what: str) -> None:
        """Check a time of the service, in nanoseconds since the epoch. Where its clock is not ours, it has one."""
        if self.same_clock:
            holds(earliest <= moment <= latest, f"{what} from {earliest} to {latest}", moment)
        else:
            holds(moment > 0, f"{what}: a time", moment)
