"""A configuration file that is written, changed or broken while its node runs: splitd reports which settings run and
which are not read, and the node can be stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.processes import NAMES
from tests import copies
from tests.service.gateway.test_gateway_probes import asked
from tests.support import Node, eventually, short_directory, splitd

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(120)]

AS_STARTED = "[content]\ngrace = '3s'\n[watchdog]\nsilence = '40s'\n"


@pytest.fixture(scope="module")
def configured() -> Iterator[Node]:
    """A node that was started with its own configuration."""
    with short_directory() as directory:
        node = Node(directory, config=AS_STARTED)
        try:
            node.up()
            yield node
        finally:
            assert node.config is not None
            node.config.write_text(AS_STARTED)
            node.clear()


@pytest.fixture
def config(configured: Node) -> Iterator[Path]:
    """Its configuration file, which is restored after the test."""
    assert configured.config is not None
    yield configured.config
    configured.config.write_text(AS_STARTED)


def test_dump_shows_the_running_configuration_and_its_differences_from_the_file(configured: Node, config: Path) -> None:
    """A service reads its new settings when it is restarted; supervisord's wait for the next up."""
    assert not configured.splitd("config", "dump").stderr
    config.write_text("[content]\ngrace = '4s'\n[watchdog]\nsilence = '41s'\n")
    done = configured.splitd("config", "dump")
    assert 'grace = "3s"' in done.stdout
    assert 'silence = "40s"' in done.stdout
    assert f"warning: {config} has changed since {', '.join(NAMES)} read it: " in done.stderr
    assert f"restart {' '.join(NAMES)}" in done.stderr
    done = configured.splitd("restart", "content")
    assert f"warning: {config} has other values for the node as a whole" in done.stderr
    done = configured.splitd("config", "dump")
    assert 'grace = "4s"' in done.stdout
    assert 'silence = "40s"' in done.stdout
    others = ", ".join(name for name in NAMES if name != "content")
    assert f"{config} has changed since {others} read it" in done.stderr


def test_a_restart_with_a_file_that_is_wrong_stops_nothing(configured: Node, config: Path) -> None:
    """The same holds for a file that is not the node's."""
    before = configured.pids()
    config.write_text("[content]\ngraze = '4s'\n")
    done = configured.splitd("restart", "content", ok=False)
    assert "nothing is restarted: config file" in done.stderr
    assert "unknown key [content] graze" in done.stderr
    other = config.with_name("other.toml")
    other.write_text(AS_STARTED)
    done = splitd("restart", "content", "--state", configured.state, "--config", other, ok=False)
    assert f"runs with configuration {config}, not {other}: " in done.stderr
    assert configured.pids() == before
    assert (
        f"warning: the node at {configured.state} runs with configuration {config}, not with this one"
        in splitd("config", "dump", "--state", configured.state, "--config", other).stderr
    )


def test_a_file_that_is_written_after_up_is_said_not_to_run(place: Path) -> None:
    """It is the default file, which did not exist before."""
    node, etc, program = Node(place), place / "etc.toml", place / "program.py"
    program.write_text(
        "from pathlib import Path; from deploy import place, running; place.ETC = running.ETC = "
        f"Path({str(etc)!r}); from deploy.splitd import main; main()"
    )

    def command(*words: str, ok: bool = True) -> tuple[str, str]:
        done = copies.run([sys.executable, str(program), *words, "--state", str(node.state)], os.environ, 60)
        assert (done.returncode == 0) == ok, done.stderr
        return done.stdout, done.stderr

    try:
        command("up", "--root", str(node.root))
        etc.write_text("[content]\ngrace = '4s'\n")
        said = (
            f"warning: {etc} is newer than the node, which runs with defaults: it is read after splitd down, then "
            "splitd up"
        )
        stdout, stderr = command("config", "dump")
        assert said in stderr
        assert 'grace = "5s"' in stdout
        assert 'grace = "4s"' not in stdout
        assert said in command("restart", "content")[1]
        etc.write_text("broken")
        assert "is down" in command("down")[0]
        assert f"config file {etc}" in command("up", ok=False)[1]
    finally:
        node.clear()


def test_a_monitor_that_speaks_no_grpc_asks_over_http(configured: Node, config: Path) -> None:
    """Once the gateway has read an address: 200 while the node works, 503 with the reason while a service is away."""
    where = configured.state / "health.sock"
    config.write_text(f"{AS_STARTED}[health]\naddress = '{where}'\n")
    configured.splitd("restart", "gateway")
    try:
        eventually(lambda: asked(where, "/health")[0] == 200, "it does not work")
        configured.splitd("down", "images")
        status, node = asked(where, "/health")
        away = {name: each for name, each in node["services"].items() if each["status"] != "SERVING"}
        assert (status, list(away)) == (503, ["images"])
        assert away["images"]["trouble"].startswith("service images ")
        assert asked(where, "/health/content")[0] == 200
        configured.splitd("restart", "images")
        eventually(lambda: asked(where, "/health")[0] == 200, "it does not work again")
    finally:
        config.write_text(AS_STARTED)
        configured.splitd("restart", "images")
        configured.splitd("restart", "gateway")
    assert not where.exists()


def test_down_needs_no_file(configured: Node, config: Path) -> None:
    """The node is named by its state, or by the file with which it was started, however broken that is now. The exit
    code is 0, and the output does not mention the file.
    """
    for where in (("--state", configured.state), ("--config", config)):
        config.write_text(f"state = '{configured.state}'\nroot = '{configured.root}'\n")
        configured.up()
        config.write_text("grace = [")
        done = splitd("down", *where)
        assert f"the node at {configured.state} is down" in done.stdout
        assert not done.stderr
        assert not configured.remains()
