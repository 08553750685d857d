"""Intents: operations that begin here, are done in a raw service, and are finished or cancelled here.

An intent ends exactly once: by Finish, by Cancel, or by :meth:`Intents.resolve`, which asks the raw service for the
outcome of intents that a dead gateway left. The answer is kept for some minutes, so that a repeated Finish or Cancel
gets the same one. The living gateway may not know of an intent that is its own, because the answer to Begin was lost.
Such an intent is resolved too: when the gateway connects and lists the intents that it knows, or after a long time.

An intent is durable before the raw call. The end of an intent that made or committed a snapshot need not be: if a power
cut undoes it, the intent is open again, and resolving it finds the raw snapshot and ends it the same way. This does not
hold for a commit of content: an ingest whose removal was not fsynced may be back, and would suggest the contrary. So
its end is durable too, unless the caller says that nobody is told of it before something durable was written.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from services.kit import errors, loops, tracing
from services.kit.faults import fault
from services.metadata import schema
from services.metadata.database import Busy, Database, check_not_sweeping, ensure_namespace
from services.metadata.schema import Answer
from services.metadata.store import Backends, Event, Finished, Gateway, Intent, Operation, Outcome, Raw
from services.metadata.transactions import Key, Reader, Transaction

log = logging.getLogger(__name__)
T = TypeVar("T")

ANSWER_KEPT = 15 * 60
"""Seconds for which the answer of an ended intent is kept; the gateway repeats a call for 10 minutes."""
UNKNOWN_TO_GATEWAY = 20 * 60
"""Seconds after which the living gateway no longer knows of an open intent: it gives up after 10 minutes."""

Finisher = Callable[[Transaction, Intent, Outcome], "Finished | errors.NodeError"]
"""Turns an intent whose raw call was done into records. An error that it returns is the caller's answer; the intent
ends all the same, and what was written stays.
"""


class Intents:
    """The open intents. ``finishers`` turn each operation into records."""

    def __init__(
        self,
        database: Database,
        publish: Callable[[Event], None],
        backends: Backends,
        finishers: Mapping[Operation, Finisher],
        *,
        answer_kept: float = ANSWER_KEPT,
    ) -> None:
        """``answer_kept``: seconds for which the answer of an ended intent is kept."""
        self._answer_kept = answer_kept
        self._database = database
        self._publish = publish
        self._backends = backends
        self._finishers = finishers
        self._resolving: asyncio.Task[None] | None = None
        self._forget_at = 0
        """Nanoseconds since the epoch until which the oldest answer is kept, as far as is known."""
        self._cancelling = loops.Tasks()
        self._ending = loops.Tasks()

    # -- the gateway

    async def connect(self, gateway: Gateway, known: frozenset[str] | None = None) -> str:
        """Note that a gateway has connected, and return this store's id. Intents of other incarnations are resolved in
        the background.

        So are intents that this gateway opened before this process started and that are not among ``known``, the open
        intents that it knows of: their answers to Begin were lost. None: the gateway does not say which it knows.

        While the store is away the gateway is noted once it is back, before anything else is written. Reads need no
        gateway.
        """
        transactions = self._database.transactions
        away = transactions.standing.away is not None
        store_id = self._database.view(schema.STORE.get) if away else None
        if store_id is None:
            await self._note(gateway)
        if self._resolving is not None:
            self._resolving.cancel()
        self._resolving = loops.start(
            "the resolving of intents", functools.partial(self._resolve_all, known, gateway if store_id else None)
        )
        if self._database.collector is not None:
            self._database.collector.connected()
        return store_id or await self._database.store_id()

    async def _note(self, gateway: Gateway) -> None:
        await self._database.write(lambda tx: schema.GATEWAY.put(tx, value=gateway), None)

    async def index(self) -> None:
        """Rebuild the index of intents, before anything is served. A store that may be away has one for certain."""
        if self._database.transactions.standing.away is None:
            await self._database.transactions.write(schema.index_intents)

    async def close(self) -> None:
        """Stop resolving."""
        if self._resolving is not None:
            self._resolving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._resolving
        if self._database.transactions.standing.away is not None:  # they wait for it
            await self._cancelling.cancel()
        await self._ending.wait()

    # -- begin and end

    async def begin(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work``, which opens an intent. If the caller is cancelled meanwhile, no intent is left open."""
        gone = False
        opened: list[str] = []
        caller, claimants = tracing.caller(), self._database.claimants

        def forget() -> None:
            for id_ in opened:
                claimants.pop(id_, None)

        def guarded(tx: Transaction) -> T:
            if gone:
                raise errors.Cancelled
            result = work(tx)
            if isinstance(result, Intent):
                forget()  # a transaction may run again
                opened[:] = [result.id]
                claimants[result.id] = caller
            return result

        task = loops.task("the begin of an intent", self._database.write(guarded))
        try:
            result = await asyncio.shield(task)
            fault("metadata.begun")
            return result
        except errors.NodeError as error:
            forget()
            # a store that is elsewhere may have it, or may have it soon
            if (
                opened
                and isinstance(error, errors.Unavailable)
                and self._database.transactions.standing.store == "etcd"
            ):
                self._cancelling.start("the cancelling of an intent", self._cancel_certainly(opened[0]))
            raise
        except asyncio.CancelledError:
            gone = True
            self._cancelling.start("the cancelling of an intent", self._undo(task, opened))
            raise

    async def begin_all(self, works: Sequence[Callable[[Transaction], T]]) -> list[T | Exception]:
        """As :meth:`begin` of each, at less cost. Returns results and exceptions; work that was Busy has not begun."""
        gone = False
        opened: dict[int, str] = {}
        caller, claimants = tracing.caller(), self._database.claimants

        def guarded(number: int, tx: Transaction) -> T:
            if gone:
                raise errors.Cancelled
            result = works[number](tx)
            if isinstance(result, Intent):
                claimants.pop(opened.get(number, ""), None)
                opened[number] = result.id
                claimants[result.id] = caller
            return result

        task = loops.task(
            "the begin of intents",
            self._database.write_all([functools.partial(guarded, number) for number in range(len(works))]),
        )
        try:
            results = await asyncio.shield(task)
        except asyncio.CancelledError:
            gone = True
            self._cancelling.start("the cancelling of intents", self._undo_all(task, opened))
            raise
        fault("metadata.begun")
        for number, result in enumerate(results):
            if isinstance(result, Exception) and number in opened:
                claimants.pop(opened[number], None)
                if isinstance(result, errors.Unavailable) and self._database.transactions.standing.store == "etcd":
                    self._cancelling.start("the cancelling of an intent", self._cancel_certainly(opened[number]))
        return results

    async def _undo_all(self, task: asyncio.Task[Any], opened: Mapping[int, str]) -> None:
        with contextlib.suppress(errors.NodeError):
            await task
            for id_ in opened.values():
                await self.cancel(id_)

    async def _cancel_certainly(self, id_: str) -> None:
        """Cancel an intent of which nobody knows whether it was written. Its answer is written in any case: after that
        the transaction that is on its way cannot be written any more.
        """

        def work(tx: Transaction) -> None:
            intent = schema.INTENTS.get(tx, id_)
            if intent is not None:
                self._end(tx, intent, "cancel", None)
            elif schema.ANSWERS.get(tx, id_) is None:
                until = time.time_ns() + int(self._answer_kept * 10**9)
                schema.ANSWERS.put(tx, id_, value=Answer(ended="cancel", until=until, detail=None))

        while True:
            await self._database.transactions.writable()
            try:
                await self._database.write(work, "deletion")
            except errors.Unavailable as error:
                log.info("intent %s, whose begin may have been lost, is not cancelled yet: %s", id_, error)
                await asyncio.sleep(0.2)
            else:
                self._database.wake(id_)
                return

    async def _undo(self, task: asyncio.Task[Any], opened: list[str]) -> None:
        with contextlib.suppress(errors.NodeError):
            await task
            for id_ in opened:
                await self.cancel(id_)

    async def finish(
        self, id_: str, outcome: Outcome, *, lasting: bool = True, patience: float | None = None
    ) -> Finished:
        """Record the outcome of the raw call. A repeated call gets the same answer, result or error. NotFound for an
        intent that is neither open nor remembered. For ``patience`` see ``Database.write``.

        Without ``lasting`` a power cut may take the record of content, until something lasting was written after it.
        """
        intent = self._database.view(lambda tx: schema.INTENTS.get(tx, id_))
        if intent is not None:
            outcome = await self._completed(intent, outcome)
        fault("metadata.before-finish")
        lasting = lasting and not _is_found_again(intent, outcome)
        work = self._finishing(id_, outcome)
        answer = await self._database.write(work, lasting=lasting, patience=patience)
        fault("metadata.finished")
        return self._finished(id_, answer)

    async def finish_all(self, ends: Sequence[tuple[str, Outcome, bool]]) -> list[Finished | Exception | None]:
        """As :meth:`finish` of each (the id, the outcome, and whether it is lasting), at less cost. Returns results
        and exceptions, and None for those that are left to that: they are lasting, or must wait for something.
        """
        found: list[Finished | Exception | None] = [None] * len(ends)
        numbers, works = list[int](), list[Callable[[Transaction], Answer]]()
        for number, (id_, outcome, lasting) in enumerate(ends):
            intent = self._database.view(lambda tx, id_=id_: schema.INTENTS.get(tx, id_))  # type: ignore[misc]
            known = intent is None or outcome.digest or (intent.operation != "commit-ingest" and not outcome.adopted)
            if known and not (lasting and not _is_found_again(intent, outcome)):
                numbers.append(number)
                works.append(self._finishing(id_, outcome))
        fault("metadata.before-finish")
        answers = await self._database.write_all(works, lasting=False)
        fault("metadata.finished")
        for number, answer in zip(numbers, answers, strict=True):
            if isinstance(answer, Busy):
                continue
            try:
                found[number] = answer if isinstance(answer, Exception) else self._finished(ends[number][0], answer)
            except errors.NodeError as error:
                found[number] = error
        return found

    def _finishing(self, id_: str, outcome: Outcome) -> Callable[[Transaction], Answer]:
        """What ends an intent."""

        def work(tx: Transaction) -> Answer:
            intent = schema.INTENTS.get(tx, id_)
            if intent is None:
                answer = schema.ANSWERS.get(tx, id_)
                if answer is None or answer.ended != "finish":
                    raise errors.NotFound(f"open intent {id_}")
                return answer
            ended = self._finishers[intent.operation](tx, intent, outcome)
            detail: dict[str, Any] = {}
            if isinstance(ended, errors.NodeError):
                detail["error"] = [ended.code, str(ended)]
            else:
                ensure_namespace(tx, intent.namespace)
                detail |= {"events": [list(e) for e in ended.events], "digest": ended.digest, "size": ended.size}
            return self._end(tx, intent, "finish", detail)

        return work

    def _finished(self, id_: str, answer: Answer) -> Finished:
        """What the caller gets, once that is written."""
        self._database.wake(id_)
        detail = answer.detail or {}
        if "error" in detail:
            self._database.schedule("deletion")  # the raw thing belongs to nobody
            code, message = detail["error"]
            raise errors.from_status(code, message)
        return Finished(events=tuple(Event(*e) for e in detail["events"]), digest=detail["digest"], size=detail["size"])

    async def _completed(self, intent: Intent, outcome: Outcome) -> Outcome:
        """The outcome, with what only the raw service knows."""
        if intent.operation == "commit-ingest" and not outcome.digest:
            if not intent.expected:
                raise errors.InvalidArgument(f"intent {intent.id}: finished without a digest")
            return replace(
                outcome, digest=intent.expected, size=await self._backends.blob_size(intent.backend, intent.expected)
            )
        for raw in outcome.adopted:
            # The collector leaves a target alone while its intent is open, but may have been removing it before.
            try:
                await self._backends.snapshot_kind(intent.backend, raw.name)
            except errors.NotFound:
                await self.cancel(intent.id)
                raise errors.Aborted(f"target snapshot {intent.target} was removed meanwhile") from None
        return outcome

    async def cancel(self, id_: str) -> None:
        """Note that the raw call certainly failed. Cancelling an intent that is cancelled or long forgotten succeeds; a
        finished intent stays finished.
        """

        def work(tx: Transaction) -> None:
            intent = schema.INTENTS.get(tx, id_)
            if intent is not None:
                self._end(tx, intent, "cancel", None)

        await self._database.write(work, "deletion")
        self._database.wake(id_)

    def _end(self, tx: Transaction, intent: Intent, how: str, detail: dict[str, Any] | None) -> Answer:
        now = time.time_ns()
        schema.delete_intent(tx, intent)
        answer = Answer(ended=how, until=now + int(self._answer_kept * 10**9), detail=detail)
        schema.ANSWERS.put(tx, intent.id, value=answer)
        if now >= self._forget_at:
            for (old,), kept in schema.ANSWERS.scan(tx, limit=4):
                if kept.until >= now:  # the oldest come first
                    self._forget_at = kept.until
                    break
                schema.ANSWERS.delete(tx, old)
        return answer

    # -- what others left open

    async def _resolve_all(self, known: frozenset[str] | None, unnoted: Gateway | None) -> None:
        while unnoted is not None:
            await self._database.transactions.writable()
            try:
                await self._note(unnoted)
                unnoted = None
            except errors.Unavailable as error:  # away again
                log.warning("the gateway is not noted yet: %s", error)
                await asyncio.sleep(0.2)
        await self._ending.wait()  # those of the previous run
        pause = 0.2
        while True:
            left = 0
            for intent in await self._abandoned(known):
                try:
                    await self.resolve(intent)
                except errors.NodeError as error:
                    log.info(
                        "the outcome of intent %s (%s in %s) is not known yet: %s",
                        intent.id,
                        intent.operation,
                        intent.backend,
                        error,
                    )
                    left += 1
                except Exception:
                    log.exception("intent %s cannot be resolved", intent.id)
                    left += 1
            pause = min(pause * 2, 10.0) if left else 60.0
            await asyncio.sleep(pause)

    async def _abandoned(self, known: frozenset[str] | None) -> list[Intent]:
        """The open intents that no living gateway will end: another incarnation opened them, or the gateway does not
        know of them.
        """
        gateway = self._database.view(schema.GATEWAY.get)
        old, started = time.time_ns() - UNKNOWN_TO_GATEWAY * 10**9, self._database.started

        def abandoned(_key: Key, intent: Intent) -> Intent | None:
            if gateway is None or intent.incarnation != gateway.incarnation or intent.begun < old:
                return intent
            return intent if known is not None and intent.begun < started and intent.id not in known else None

        return [intent async for some in self._database.select(schema.INTENTS, make=abandoned) for intent in some]

    async def resolve(self, intent: Intent) -> None:
        """Ask the raw service for the outcome, then finish or cancel. Any error but NotFound means that the outcome is
        not known yet, and is raised.
        """
        try:
            outcome = await self._outcome(intent)
        except errors.NotFound:
            log.info(
                "intent %s (%s in %s, %s) is cancelled: its raw call was not done",
                intent.id,
                intent.operation,
                intent.backend,
                intent.ref or intent.key,
            )
            await self._run_to_end(self.cancel(intent.id))
            return
        log.info(
            "intent %s (%s in %s, %s) is finished: its raw call had been done",
            intent.id,
            intent.operation,
            intent.backend,
            intent.ref or intent.key,
        )
        await self._run_to_end(self._finish_found_done(intent, outcome))

    async def _finish_found_done(self, intent: Intent, outcome: Outcome) -> None:
        try:
            # waiting for another intent's end would keep that one from being resolved
            finished = await self.finish(intent.id, outcome, patience=0)
        except (errors.Unavailable, errors.ResourceExhausted):
            raise
        except errors.NodeError as error:
            log.info("intent %s: %s", intent.id, error)  # recorded as the answer; its caller is gone
            return
        for event in finished.events:
            self._publish(event)

    async def _run_to_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` to its end even if a gateway connects meanwhile, which cancels the resolving: between the end of
        an intent and its events nothing may be cut off.
        """
        await asyncio.shield(self._ending.keep(loops.task("the end of an intent", work)))

    async def _outcome(self, intent: Intent) -> Outcome:
        """The outcome of the raw call; NotFound if it was not done."""
        if intent.operation == "commit-ingest":
            try:
                await self._backends.ingest_offset(intent.backend, intent.raw_ref)
            except errors.NotFound:
                if not intent.expected:
                    raise
                return Outcome(
                    digest=intent.expected, size=await self._backends.blob_size(intent.backend, intent.expected)
                )
            raise errors.NotFound(f"commit of {intent.raw_ref}")  # the ingest still exists
        if intent.operation == "commit-snapshot":
            await self._backends.snapshot_kind(intent.backend, intent.raw_name)
        else:
            await self._backends.snapshot_kind(intent.backend, intent.raw_key)
        return Outcome()


# ---------------------------------------------------------------------------------------------- pieces of work


def _is_found_again(intent: Intent | None, outcome: Outcome) -> bool:
    """Whether the end of an intent would be found again after a power cut, so that it need not be lasting."""
    return intent is not None and intent.operation != "commit-ingest" and not outcome.adopted


def connected(tx: Reader, incarnation: str) -> Gateway:
    """The gateway of that incarnation. FailedPrecondition if no gateway, or another one, connected last."""
    gateway = schema.GATEWAY.get(tx)
    if gateway is None or gateway.incarnation != incarnation:
        raise errors.FailedPrecondition(f"gateway {incarnation} has not connected")
    return gateway


def open_intent(tx: Transaction, intent: Intent) -> Intent:
    """Write an intent, with a new id and the current time."""
    now = time.time_ns()
    intent = replace(intent, id=f"{now:016x}-{secrets.token_hex(4)}", begun=now)
    schema.put_intent(tx, intent)
    return intent


def check_unclaimed(tx: Reader, since: int, what: str, namespace: str, snapshotter: str, *names: str) -> None:
    """Busy while an open intent begun after ``since`` claims one of ``names``: the second operation then sees the first
    one's result, as if one lock covered both.

    Older intents may have no caller, and are not waited for. If one ends well after all, it counts as the later one.
    """
    for intent in schema.intents_claiming(tx, namespace, snapshotter, *names):
        if intent.begun >= since:
            raise Busy(f"{what} is in use by another call", intent.id)


def check_target_not_sweeping(tx: Reader, backend: str, target: str) -> None:
    """Busy while the collector removes a raw snapshot with the same target (label containerd.io/snapshot.ref)."""
    for (_, _, name), mark in schema.SWEEPING.scan(tx, backend, "snapshot"):
        if mark.reference == target:
            raise Busy(
                f"snapshot {name} for {target} is being removed by the collector", Raw(backend, "snapshot", name)
            )


def check_no_blob_sweeping(tx: Reader, backend: str, digest: str) -> None:
    """Busy while the collector removes the blob, or any blob if the digest is not known yet."""
    if digest:
        check_not_sweeping(tx, Raw(backend, "blob", digest))
        return
    for raw in schema.marked(tx, backend):
        if raw.kind == "blob":
            raise Busy("content of an unknown digest is being removed by the collector", raw)
