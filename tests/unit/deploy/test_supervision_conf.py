"""supervisord's configuration as it is rendered, and as supervisord itself parses it."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from deploy import supervision
from deploy.place import TOP, Place
from deploy.processes import NAMES, PROCESSES, SOCKETS
from services.kit import sockets


def parsed(where: Place) -> Any:
    """Return supervisord's parsed configuration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from supervisor.options import ServerOptions
    where.logs.mkdir(parents=True)
    where.state.mkdir(parents=True)
    if where.config is not None and not where.config.exists():
        where.config.touch()
    where.supervisord_conf.write_text(supervision.render(where))
    options = ServerOptions()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options.realize(["-c", str(where.supervisord_conf)])
    return options


@pytest.mark.skipif(os.geteuid() != 0, reason="supervisord refuses user=root to others")
@pytest.mark.parametrize("name", ["plain", "with space", "50%", "%(here)s %%", "ümlaut", "$HOME"])
def test_supervisord_reads_the_paths_that_were_meant(name: str, place: Path) -> None:
    """Spaces, percent signs and dollars in root, state and configuration reach each process unchanged."""
    where = Place(place / name / "r", place / name / "s", place / name / "c.toml")
    options = parsed(where)
    groups = {config.name: config.process_configs[0] for config in options.process_group_configs}
    assert list(groups) == list(NAMES) or set(groups) == set(NAMES)
    for process in groups.values():
        words = shlex.split(process.command)
        assert words[1:3] == ["--pdeathsig", "TERM"]
        assert words[words.index("--root") + 1] == str(where.root)
        assert words[words.index("--state") + 1] == str(where.state)
        assert words[words.index("--config") + 1] == str(where.config)
        assert process.stdout_logfile == str(where.log(process.name))
        assert process.directory == str(TOP)
    assert options.logfile == str(where.logs / "supervisord.log")
    assert options.server_configs[0]["file"] == str(where.supervisor_socket)


@pytest.mark.skipif(os.geteuid() != 0, reason="supervisord refuses user=root to others")
def test_a_longer_grace_in_the_configuration_is_waited_for(place: Path) -> None:
    """supervisord kills no process within the grace period of its settings."""
    config = place / "config.toml"
    config.write_text("[content]\ngrace = '1m'\n")
    seconds = {
        group.name: group.process_configs[0].stopwaitsecs
        for group in parsed(Place(place / "r", place / "s", config)).process_group_configs
    }
    assert seconds["content"] > 60 + 3
    assert seconds["metadata"] < 60


@pytest.mark.skipif(os.geteuid() != 0, reason="supervisord refuses user=root to others")
def test_each_process_is_kept_running_and_only_it_is_signalled(place: Path) -> None:
    """Each is restarted however it ended and however fast; TERM goes to its own pid only, with more time than it needs
    to drain.
    """
    for group in parsed(Place(place / "r", place / "s", None)).process_group_configs:
        (process,) = group.process_configs
        assert process.autorestart is not False
        assert process.startsecs == 0
        assert (process.stopasgroup, process.killasgroup) == (False, False)
        assert process.stopwaitsecs > 5 + 3
        assert "--config" not in shlex.split(process.command)


@pytest.mark.skipif(os.geteuid() != 0, reason="supervisord refuses user=root to others")
def test_a_process_has_the_variables_of_its_row(place: Path) -> None:
    """Those and no more of its own: the rest is what the node was started with."""
    found = {
        group.name: dict(group.process_configs[0].environment or {})
        for group in parsed(Place(place / "r", place / "s", None)).process_group_configs
    }
    assert found == {process.name: dict(process.environment) for process in PROCESSES}
    assert found["images"] == {"PYTHONMALLOC": "malloc"}


def test_the_longest_socket_name_is_known() -> None:
    """A state directory that passes the check has room for every socket."""
    longest = max(SOCKETS, key=len)
    state = "/" + "x" * (107 - 2 - len(longest))
    sockets.check_path(Path(state) / longest)
    assert len("containerd.sock.ttrpc") <= len(longest)


def test_the_node_gets_of_the_environment_what_it_needs_and_no_more() -> None:
    """Tracing, logging, proxies and PATH (with runc's directory added) are passed on; an operator's LD_PRELOAD and
    trace context are not. All processes get the same clock, not that of another node that the operator's shell is in.
    """
    found = supervision.environment(
        {
            "PATH": "/home/me/bin:/usr/bin",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "x",
            "SPLITD_LOG": "DEBUG",
            "https_proxy": "p",
            "LD_PRELOAD": "/x.so",
            "TRACEPARENT": "00-1",
            "PYTHONPATH": "/x",
            "NOTIFY_SOCKET": "/x",
            "SPLITD_CLOCK": "1",
        }
    )
    assert set(found) == {
        "PATH",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "SPLITD_LOG",
        "https_proxy",
        "PYTHONUNBUFFERED",
        "SPLITD_CLOCK",
    }
    assert int(found["SPLITD_CLOCK"]) > 1
    assert found["PATH"].split(":")[:2] == ["/home/me/bin", "/usr/bin"]
    assert "/usr/sbin" in found["PATH"].split(":")


@pytest.mark.root
@pytest.mark.parametrize("inside", [True, False])
def test_a_node_in_a_container_is_another(tmp_path: Path, *, inside: bool) -> None:
    """Its supervisord has the same arguments, with the directories inside the container. Otherwise ``down`` outside
    would end it, and ``up`` would not start.
    """
    here = Place(tmp_path / "root", tmp_path / "state", None)
    here.state.mkdir()
    here.supervisord_conf.touch()
    mount = f"mount -t tmpfs tmpfs '{here.state}' && touch '{here.supervisord_conf}' && " if inside else ""
    command = (
        f"{mount}exec '{sys.executable}' -c 'print(1, flush=True); import time; time.sleep(100)' -m "
        f"deploy.inside -c '{here.supervisord_conf}'"
    )
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", command], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"1\n"
            assert supervision.pid_of(here) == (0 if inside else process.pid)
            assert supervision.is_up(here) is not inside
            here.supervisord_conf.unlink()
            assert supervision.pid_of(here) == (0 if inside else process.pid)
        finally:
            process.kill()


def test_a_reader_does_not_prevent_a_start(tmp_path: Path) -> None:
    """The reader has the lock for a moment too, as every process that checks whether a node is up."""
    here = Place(tmp_path / "root", tmp_path / "state", None)
    here.state.mkdir()
    with here.lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.05, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with supervision.claimed(here, looked=30.0) as lock:
            assert lock is not None


def test_the_lock_says_whether_a_node_is_up(tmp_path: Path) -> None:
    """While a file descriptor holds it, it is busy for all other processes; when that is closed, it is free, whatever
    files are left.
    """
    where = Place(tmp_path / "r", tmp_path / "s", None)
    assert not supervision.is_up(where)
    with supervision.claimed(where) as lock:
        assert lock is not None
        assert supervision.is_up(where)
        with supervision.claimed(where) as second:
            assert second is None
    assert where.lock.exists()
    assert not supervision.is_up(where)
