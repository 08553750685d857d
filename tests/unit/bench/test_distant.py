"""The relay that makes a registry distant: the bytes that pass, their delay and their rate."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import asynccontextmanager

import pytest

from bench.distant import WINDOW, distant, relay

ROUND_TRIP = 0.04
MB = 1_000_000


@asynccontextmanager
async def distant_server(answer, round_trip=ROUND_TRIP, rate=1e12):
    """Run a server that answers each line by ``answer(line)``, behind a relay; return the relay's port."""

    async def serve(reader, writer):
        try:
            while line := await reader.readline():
                writer.write(answer(line))
                await writer.drain()
        except ConnectionError:
            pass  # the client has gone, which is what a test is about
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        far = await relay(server.sockets[0].getsockname()[1], round_trip, rate)
        async with far:
            yield far.sockets[0].getsockname()[1]


def now():
    return asyncio.get_running_loop().time()


async def test_a_first_answer_takes_two_round_trips_and_the_next_takes_one():
    async with distant_server(lambda line: line) as port:
        start = now()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"one\n")
        assert await reader.readline() == b"one\n"
        first = now()
        assert first - start >= 2 * ROUND_TRIP - 0.002
        writer.write(b"two\n")
        assert await reader.readline() == b"two\n"
        assert now() - first >= ROUND_TRIP - 0.002
        writer.close()


async def test_all_bytes_pass_in_order_and_no_faster_than_the_rate_all_connections_together():
    body, rate, clients = os.urandom(2 * MB), 20 * MB, 3
    async with distant_server(lambda _: body, rate=rate) as port:

        async def fetched():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"all\n")
            data = await reader.readexactly(len(body))
            writer.close()
            return data

        start = now()
        assert {
            hashlib.sha256(data).digest() for data in await asyncio.gather(*(fetched() for _ in range(clients)))
        } == {hashlib.sha256(body).digest()}
        assert now() - start >= clients * len(body) / rate


async def test_a_small_answer_does_not_wait_behind_all_of_a_large_one():
    sizes = {b"large\n": 4 * MB, b"small\n": 10}
    rate = 8 * MB
    async with distant_server(lambda line: bytes(sizes[line]), rate=rate) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"large\n")
        await reader.readexactly(MB)
        other, sender = await asyncio.open_connection("127.0.0.1", port)
        sender.write(b"small\n")
        small = asyncio.create_task(other.readexactly(10))
        large = asyncio.create_task(reader.readexactly(3 * MB))
        done, _ = await asyncio.wait([small, large], return_when=asyncio.FIRST_COMPLETED)
        assert done == {small}
        await large
        writer.close()
        sender.close()


async def test_a_client_that_does_not_read_slows_only_its_server():
    sent = 0

    async def pouring(_, writer):
        nonlocal sent
        try:
            while sent < 256 * MB:
                writer.write(bytes(MB))
                await writer.drain()
                sent += MB
        except ConnectionError:
            pass  # the relay hung up for the client, at last
        finally:
            writer.close()

    async with (
        await asyncio.start_server(pouring, "127.0.0.1", 0) as server,
        await relay(server.sockets[0].getsockname()[1], ROUND_TRIP, 1e12) as far,
    ):
        port = far.sockets[0].getsockname()[1]
        _, stopped = await asyncio.open_connection("127.0.0.1", port, limit=1)
        other, sender = await asyncio.open_connection("127.0.0.1", port)
        await other.readexactly(64 * MB)
        assert sent >= 64 * MB
        stopped.transport.abort()
        sender.transport.abort()


async def test_an_unreachable_target_hangs_up():
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        closed = server.sockets[0].getsockname()[1]
    async with await relay(closed, ROUND_TRIP, 1e12) as far:
        reader, writer = await asyncio.open_connection("127.0.0.1", far.sockets[0].getsockname()[1])
        assert await reader.read() == b""
        writer.close()


def test_the_window_does_not_limit_the_benchs_rates():
    from bench.distant import RATE
    from bench.distant import ROUND_TRIP as BENCH_ROUND_TRIP

    # half of it is the least under way while the server is told to go on
    assert WINDOW / 2 >= RATE * BENCH_ROUND_TRIP / 2


async def test_as_a_process_it_relays_and_ends_with_its_parent():
    async def echo(reader, writer):
        writer.write(await reader.readexactly(5))
        writer.close()

    async def answered(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        assert await reader.read() == b"hello"
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        with distant(server.sockets[0].getsockname()[1], round_trip=ROUND_TRIP) as port:
            await asyncio.gather(*(answered(port) for _ in range(50)))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
