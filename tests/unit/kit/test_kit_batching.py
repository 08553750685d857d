"""kit.batching: for any values of the variables, the SDK accepts the resulting settings."""

from __future__ import annotations

import itertools

import pytest

from services.kit import batching
from services.kit.batching import Batching

QUEUE, BATCH, DELAY = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY"
ODD = ("", " ", "0", "-1", "1", "100", "1e3", "many", "\u0663", "9" * 18, "9" * 5000)


@pytest.mark.parametrize(
    ("variables", "wanted", "said"),
    [
        ({}, Batching(2048, 512, 5000, 30_000), []),
        ({QUEUE: "100"}, Batching(100, 100, 5000, 30_000), []),
        ({QUEUE: "4096", BATCH: " 1024 ", DELAY: "200"}, Batching(4096, 1024, 200, 30_000), []),
        (
            {QUEUE: "100", BATCH: "200"},
            Batching(100, 100, 5000, 30_000),
            [f"{BATCH}=200 is more than {QUEUE}, 100: batches have 100"],
        ),
        (
            {DELAY: "0"},
            Batching(2048, 512, 5000, 30_000),
            [f"{DELAY}=0 is not a whole number from 1 to 86400000: 5000 is used"],
        ),
        (
            {BATCH: "few"},
            Batching(2048, 512, 5000, 30_000),
            [f"{BATCH}=few is not a whole number from 1 to 1048576: 512 is used"],
        ),
    ],
)
def test_what_is_made_of_the_variables(variables: dict[str, str], wanted: Batching, said: list[str]) -> None:
    """A batch is no larger than the queue; an unusable value is reported together with its replacement."""
    assert batching.read(variables) == (wanted, said)


def test_nothing_that_the_variables_say_is_refused_by_the_sdk() -> None:
    """In every combination of odd values, each setting is one that the SDK and a thread's wait accept; and no message
    is long.
    """
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    for values in itertools.product(ODD, repeat=3):
        found, wrong = batching.read(dict(zip((QUEUE, BATCH, DELAY), values, strict=True)))
        BatchSpanProcessor._validate_arguments(found.queue, found.delay, found.batch)
        assert found.queue <= 1 << 20
        assert found.delay <= 86_400_000
        assert all(len(line) < 300 for line in wrong)
