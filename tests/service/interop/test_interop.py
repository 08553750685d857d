"""Our gRPC and other implementations in both directions: every client's cases on every server.

grpcio can carry rpc.py itself, so its cases are ours, run on it. grpc-go's programs are its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.kit import rpc
from tests.interop import client
from tests.interop.programs import TRANSPORTS, go_program, go_server, our_server
from tests.support import TOP

pytestmark = pytest.mark.once

GO_CASES = """empty_unary large_unary client_streaming server_streaming ping_pong empty_stream timeout_on_sleeping_server cancel_after_begin
cancel_after_first_response status_code_and_message special_status_message custom_metadata unimplemented_method unimplemented_service
pick_first_unary orca_per_rpc orca_oob rpc_soak channel_soak""".split()
GO_NOT_APPLYING = {
    "compute_engine_creds",
    "service_account_creds",
    "jwt_token_creds",
    "per_rpc_creds",
    "oauth2_auth_token",
    "google_default_credentials",
    "compute_engine_channel_credentials",
}
"""They need TLS and an account in Google's cloud."""

BALANCER = '-service_config_json={"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}'
"""The part of grpc-go's client that reads reported load."""
SOAK = [
    "-soak_overall_timeout_seconds=60",
    f"-soak_per_iteration_max_acceptable_latency_ms={client.LATENCY * 1000:.0f}",
]
GO_FLAGS = {
    "orca_per_rpc": [BALANCER],
    "orca_oob": [BALANCER],
    "rpc_soak": ["-soak_iterations=100", *SOAK],
    "channel_soak": ["-soak_iterations=30", *SOAK],
}

NOT_SEEN = {("grpcio", "orca_per_rpc")}
"""grpcio's client hides endpoint-load-metrics-bin. Its server sends it: grpc-go's client receives it."""


class Runs:
    """The servers, each started when it is first needed; and the results of our client on each, by case. A failure is
    found once, for all cases.
    """

    def __init__(self, stack: contextlib.ExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        self._done: dict[tuple[str, ...], Any] = {}

    def _once(self, key: tuple[str, ...], make: Callable[..., Any]) -> Any:
        if key not in self._done:
            try:
                self._done[key] = make(*key)
            except (AssertionError, RuntimeError, subprocess.TimeoutExpired) as error:
                self._done[key] = error
        if isinstance(self._done[key], Exception):
            pytest.fail(f"{' on '.join(key)}: {self._done[key]}", pytrace=False)
        return self._done[key]

    def address(self, server: str) -> str:
        return str(self._once((server,), self._start))

    def error(self, transport: str, server: str, case: str) -> str | None:
        """Return the error of a case; None if it passed."""
        found: str | None = self._once((transport, server), self._run)[case]["error"]
        return found

    def _start(self, server: str) -> str:
        return self._stack.enter_context(
            go_server(self._directory) if server == "go" else our_server(server, self._directory)
        )

    def _run(self, transport: str, server: str) -> dict[str, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.interop.client", self.address(server)],
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "SPLITD_GRPC_TRANSPORT": transport},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        results = {result["case"]: result for result in map(json.loads, done.stdout.splitlines())}
        assert set(results) == {case.__name__ for case in client.CASES}, (
            f"it ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
        assert not done.stderr, done.stderr
        return results


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with contextlib.ExitStack() as stack:
        yield Runs(stack, tmp_path_factory.mktemp("interop"))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("server", [*TRANSPORTS, "go"])
@pytest.mark.parametrize("case", [case.__name__ for case in client.CASES])
def test_our_client_on_a_server(runs: Runs, transport: str, server: str, case: str) -> None:
    """One process runs all cases of a client and a server, at the first request for one of them."""
    error = runs.error(transport, server, case)
    if (transport, case) in NOT_SEEN:
        assert error, "it is seen now: NOT_SEEN is no longer true"
    else:
        assert error is None, error


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("case", GO_CASES)
def test_grpc_gos_client_on_our_server(runs: Runs, transport: str, case: str) -> None:
    """It prints the failed case and exits with 1."""
    host, _, port = runs.address(transport).rpartition(":")
    command = [
        go_program("client"),
        f"-server_host={host}",
        f"-server_port={port}",
        f"-test_case={case}",
        *GO_FLAGS.get(case, []),
    ]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_no_case_of_grpc_gos_client_is_left_out() -> None:
    """Its help lists them all, except the soak cases."""
    done = subprocess.run(
        [go_program("client"), "-help"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    listed = re.findall(
        r"^\s+(\w+) ?: ", done.stderr.partition("Valid options are:")[2].partition("\n  -")[0], re.MULTILINE
    )
    assert {*listed, "rpc_soak", "channel_soak"} == {*GO_CASES, *GO_NOT_APPLYING}


# ---------------------------------------------------------------------------------------------- honest clients that say
# much


CHATS = [("pingpong", 5000, 1), ("answers", 5000, 1), ("answers", 300, 100_000), ("cancels", 5000, 1), ("late", 20, 1)]
"""docs/wire.md says what such a client sends beside its messages."""


@pytest.mark.parametrize("mode, count, size", CHATS)
@pytest.mark.parametrize("peer", ["grpc-go", "grpcio"])
def test_an_honest_client_is_no_flood(runs: Runs, peer: str, mode: str, count: int, size: int) -> None:
    """Many small pieces, many calls cancelled at once, messages after a refusal: every call is answered, on one
    connection that is not ended.
    """
    address = runs.address("wire")
    command = (
        [go_program("chat"), f"-address={address}", f"-mode={mode}", f"-count={count}", f"-size={size}"]
        if peer == "grpc-go"
        else [sys.executable, "-m", "tests.interop.chat", address, mode, str(count), str(size)]
    )
    done = subprocess.run(
        command,
        cwd=TOP,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout


async def test_an_honest_server_is_no_flood(runs: Runs) -> None:
    """grpc-go's server sends a window update and a ping for each small message that it gets: our client goes on."""
    async with rpc.Channel(runs.address("go"), "peer", pings="never") as channel:
        peer = client.Peer(channel)
        async with peer.duplex() as stream:
            for _ in range(5000):
                await stream.send(client.asking(1, 1))
                client.same_payload(await stream.receive(), 1)
