"""What a worker's time went for."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator

from services.snapshots.diff.spent import Account, Counters, Spent
from services.snapshots.diff.stream import Growing, ahead

MS = 1_000_000


def compute(milliseconds: int) -> None:
    """Keep a processor busy."""
    until = time.thread_time_ns() + milliseconds * MS
    while time.thread_time_ns() < until:
        continue


def test_the_parts_add_up() -> None:
    """A thread that computes, waits for bytes, and is blocked: each has its part, and nothing is lost."""
    begun = time.monotonic_ns()
    account = Account()
    compute(30)
    account.here().begin_to_wait()
    time.sleep(0.05)
    account.here().end_to_wait()
    time.sleep(0.02)
    spent = account.close()
    assert abs(spent.whole - (time.monotonic_ns() - begun) / 1000) < 2000
    assert spent.cpu >= 30_000
    assert spent.bytes + spent.runqueue + spent.disk >= 68_000
    assert spent.bytes >= 30_000
    assert spent.disk >= 10_000
    assert (spent.beside, spent.delayed) == (0, 0)
    assert spent.settled(0) == spent  # without a helper the worker knows it all itself


def test_a_helper_is_asked_why_the_main_thread_waits() -> None:
    """The main thread waits for chunks: of a helper that computes, and of one that waits for bytes itself. What the
    helper does while the main thread is busy with something else is not counted.
    """
    computed = threading.Event()

    def chunks() -> Iterator[bytes]:
        compute(40)
        yield b"late"
        compute(30)
        computed.set()
        yield b"beside"

    account = Account()
    each = ahead(chunks(), account)
    assert next(each) == b"late"
    computed.wait()
    assert list(each) == [b"beside"]
    spent = account.close()
    assert 25_000 <= spent.cpu < 60_000, spent
    assert spent.busy >= 70_000
    assert spent.beside >= 10_000


def test_the_bytes_that_a_helper_waits_for_are_the_workers() -> None:
    """The news of a blob come late, and the main thread waits for the helper that waits for them."""
    (blob, more), (news, tell) = os.pipe(), os.pipe()
    os.close(more)
    os.close(blob)
    file = os.memfd_create("blob")
    os.write(file, bytes(100))
    account = Account()
    growing = Growing(file, news, 100, account)
    taken: list[bytes] = []

    def bring() -> None:
        time.sleep(0.08)
        os.write(tell, (100).to_bytes(8, "little"))

    bringing = threading.Thread(target=bring)
    bringing.start()
    taken.extend(ahead(iter(growing), account))
    spent = account.close()
    bringing.join()
    for fd in (file, news, tell):
        os.close(fd)
    assert b"".join(taken) == bytes(100)
    assert spent.bytes >= 30_000, spent
    assert spent.bytes + spent.runqueue + spent.cpu >= 0.9 * spent.whole


class Uncounted(Account):
    """There is no file descriptor left for the helper's counters."""

    def help(self) -> Counters:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_helper_that_cannot_count_makes_no_chunks() -> None:
    """The main thread learns why, instead of waiting for ever."""
    account = Uncounted()
    failed: list[OSError] = []

    def take() -> None:
        try:
            list(ahead(iter([b"a"]), account))
        except OSError as error:
            failed.append(error)

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    taking.join(10)
    assert [error.errno for error in failed] == [errno.EMFILE]
    assert account.close().whole > 0


def test_a_lock_of_the_worker_is_no_disk() -> None:
    """The main thread was blocked for 50 ms, and another process saw it blocked by the kernel for 10 ms. For the other
    40 ms the helper had the interpreter; it ran for a quarter of its time.
    """
    spent = Spent(100, 20, 50, 30, 60, 30, 10, 150, beside=10, delayed=30)
    settled = spent.settled(10)
    assert settled.whole == spent.whole
    assert (settled.cpu, settled.runqueue, settled.disk, settled.bytes) == (110, 50, 10, 30)
    assert spent.settled(70) == spent


def test_an_account_is_a_word() -> None:
    """It is part of a worker's answer."""
    spent = Spent(*range(10))
    assert Spent.parse(str(spent)) == spent
    assert " " not in str(spent)
