"""The splitd command when a node is not up or a word is mistyped: one line, an exit code, no traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import memory, supervision, transferring
from deploy.failure import Failure
from deploy.health import Registry
from deploy.place import Place, load_node
from deploy.splitd import answered, loaded, run
from deploy.verbs import VERBS
from deploy.verbs.status import troubled
from services.kit import version
from tests.support import TOP, splitd

UNPRINTED = "splitd: standard output: no space left on device\n"
MISTYPED = [
    (["upp"], "did you mean 'up'?"),
    (["frobnicate"], f"({', '.join(VERBS)})"),
    (["donw"], "did you mean 'down'?"),
    (["ps"], "did you mean 'status'? Containers are shown by a client, such as ctr tasks ls"),
    (["rmi", "x"], "did you mean 'images remove'?"),
    (["ls"], "did you mean 'images ls'?"),
    (["stop"], "did you mean 'down'?"),
    (["help", "imagse"], "did you mean 'images'?"),
    (["--state", "/tmp/x", "up"], "say the verb first"),
    (["restart"], "say which service"),
    (["restart", "contents"], "did you mean 'content'?"),
    (["up", "nothing"], "is not known"),
    (["logs", "gatewy"], "did you mean 'gateway'?"),
    (["logs", "-f", "-n", "-1"], "0 or more"),
    (["logs", "content", "-n", "many"], "invalid int value: 'many'"),
    (["config"], "config default|check|dump"),
    (["config", "check", "/tmp/x.toml"], "splitd config check --config /tmp/x.toml"),
    (["logs", "content", "-n", "-3"], "0 or more"),
    (["config", "defaults"], "did you mean 'default'?"),
    (["down", "content", "--containers"], "name no services with it"),
    (["status", "--jsn"], "unrecognized arguments: --jsn"),
    (["pull"], "required: REF"),
    (["pull", "x", "--platform", "linux/"], "'linux/' is not a platform"),
    (
        ["pull", "x", "--platform", "linux/amd64", "--all-platforms"],
        "--platform and --all-platforms contradict each other",
    ),
    (["pull", "x", "--no-unpack", "--snapshotter", "native"], "--no-unpack and --snapshotter contradict each other"),
    (["pull", "x", "--json", "--quiet"], "--json and --quiet contradict each other"),
    (["pull", "x", "--hosts-dir", "/nowhere/certs.d"], "--hosts-dir /nowhere/certs.d: there is no such directory"),
    (["pull", "x", "--user", ":secret"], "--user: say NAME or NAME:PASSWORD"),
    (["push", "x", "--all-platforms"], "unrecognized arguments: --all-platforms"),
    (["images", "rmi"], "invalid choice: 'rmi'"),
    (["images", "rm"], "required: REF"),
    (["images", "remove"], "required: REF"),
    (["images", "--json", "remove", "x"], "--json is for list, export and import, not for remove"),
    (["completion", "tcsh"], "shell 'tcsh' is not known (bash, zsh, fish)"),
    (["leases", "remove"], "say which leases, or --interrupted"),
    (["leases", "rm", "x", "--interrupted"], "name no leases with it"),
    (["images", "export", "-", "x", "--json"], "so --json cannot"),
    (["traces"], "did you mean 'trace'?"),
    (["trace", "shw"], "invalid choice: 'shw'"),
    (["trace", "ls", "--since", "yesterday"], "--since 'yesterday' is no time: say 90s, 15m, 2h, 3d, or"),
    (["trace", "ls", "--since", "0001-01-01"], "--since '0001-01-01' is no time: say 90s, 15m, 2h, 3d, or"),
    (["trace", "ls", "--limit", "0"], "--limit 0: say 1 to"),
    (["trace", "ls", "--slow", "-1"], "--slow '-1' is no duration: say 100ms, 90s, 2m or 1h"),
    (["trace", "ls", "--slow", "1e99"], "--slow '1e99' is no duration: say 100ms, 90s, 2m or 1h"),
    (["trace", "export", "x", "--format", "zipkin"], "invalid choice: 'zipkin'"),
    (["trace", "compare", "1"], "required: TRACE"),
]


def test_a_command_needs_no_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's directory may have been removed, as that of a clone that was cloned again."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(Failure, match="no node is up at /nowhere"):
        run(["status", "--state", "/nowhere"])


@pytest.mark.parametrize(("words", "said"), MISTYPED, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_mistyped_word_is_answered_by_one_line_with_the_choices(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, and one line on standard error names the valid words."""
    assert code_of(words) == 2
    done = capsys.readouterr()
    assert said in done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert not done.out


def code_of(words: list[str]) -> int | str | None:
    """The exit code of a command, without a process of its own."""
    try:
        return answered(words)
    except SystemExit as ended:  # argparse's
        return ended.code


def test_a_mistyped_word_is_the_programs_exit_code() -> None:
    """So it is for the program itself."""
    done = splitd("upp", ok=None)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'up'?" in done.stderr


def test_without_a_verb_the_verbs_are_shown() -> None:
    """``splitd`` alone prints help, but fails."""
    done = splitd(ok=False)
    assert "restart" in done.stdout
    assert done.returncode == 2


@pytest.mark.parametrize("word", ["ps", "sh", "cp", "top", "frobnicate", "build"])
def test_a_word_that_is_like_no_verb_suggests_none_that_acts(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`ps` and `push` have only two letters in common."""
    assert code_of([word]) == 2
    said = capsys.readouterr().err
    assert not re.search("did you mean '(up|down|push|pull|restart)'", said), said


@pytest.mark.parametrize("words", [[], ["up"], ["images"], ["images", "remove"]], ids=" ".join)
def test_help_is_a_verb_too(words: list[str]) -> None:
    """It prints the same as --help."""
    asked = splitd("help", *words)
    assert asked.stdout.startswith(" ".join(["usage: splitd", *words]))
    assert asked.stdout == splitd(*words, "--help").stdout


def test_the_version_is_a_verb_too(place: Path) -> None:
    """It succeeds without a running node, since it belongs into bug reports."""
    words = ("version", "--root", place / "r", "--state", place / "s")
    command, node = splitd(*words).stdout.splitlines()
    assert command.startswith(f"command  {version.VERSION}")
    assert node == f"node     none is up at {place}/s"
    assert json.loads(splitd(*words, "--json").stdout)["node"] is None


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--json"],
        ["down", "--containers"],
        ["down", "content"],
        ["restart", "content"],
        ["up", "content"],
        ["pull", "x"],
        ["push", "x"],
        ["images"],
        ["images", "ls"],
        ["images", "remove", "x"],
        ["images", "rm", "x"],
        ["leases"],
        ["leases", "rm", "--interrupted"],
        ["trace"],
        ["trace", "show"],
        ["trace", "top"],
    ],
    ids=" ".join,
)
def test_a_node_that_is_not_up_is_said_to_be_so(words: list[str], place: Path) -> None:
    """The exit code is 3, and the message says how to start it."""
    done = splitd(*words, "--root", place / "r", "--state", place / "s", ok=None)
    assert done.returncode == 3, done.stderr
    assert '"up": false' in done.stdout if "--json" in words else "no node is up at" in done.stderr


def test_down_where_nothing_is_up_is_done_already(place: Path) -> None:
    """As ``up`` of a running node it says so and succeeds."""
    assert "nothing to stop" in splitd("down", "--root", place / "r", "--state", place / "s").stdout


def test_logs_of_a_root_that_never_had_a_node(place: Path) -> None:
    """One line names the missing file."""
    done = splitd("logs", "content", "--root", place / "r", "--state", place / "s", ok=False)
    assert f"there is no log at {place}/r/log/content.log" in done.stderr


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("x" * 90, "bytes too long: socket paths end at 107 bytes"),
        ("it's", "which supervisord cannot take"),
        ("a;b", "which supervisord cannot take"),
        ("a\nb", "which supervisord cannot take"),
    ],
)
def test_a_state_directory_that_cannot_work_is_refused_with_the_reason(state: str, said: str, place: Path) -> None:
    """It is refused before any file is made."""
    done = splitd("up", "--root", place / "root", "--state", place / state, ok=False)
    assert said in done.stderr
    assert not (place / state).exists()


def test_a_machine_without_a_shim_is_told_what_to_install(place: Path) -> None:
    """PATH has nothing of Debian's packages: each program is named, with the command that installs them."""
    program = (
        "import sys; from deploy import supervision; supervision.SYSTEM_PATH = (); from deploy.splitd import "
        "main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "up", "--root", str(place / "r"), "--state", str(place / "s")],
        cwd=TOP,
        check=False,
        env={"PATH": str(place)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "runc, containerd-shim-runc-v2 not found: apt-get install containerd runc util-linux" in line


@pytest.mark.parametrize("verb", ["up", "demo"])
def test_an_ordinary_user_is_told_to_become_root(verb: str, place: Path) -> None:
    """One line, and exit code 1."""
    module = "deploy.demo" if verb == "demo" else "deploy.splitd"
    program = f"import os; os.geteuid = lambda: 1000; from {module} import main; main()"
    words = [] if verb == "demo" else [verb]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--root", str(place / "r"), "--state", str(place / "s")],
        cwd=TOP,
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "run " in line
    assert "root (sudo)" in line


def test_a_defect_is_one_line_unless_debugging(place: Path) -> None:
    """An unexpected exception shows no traceback unless SPLITD_DEBUG=1."""
    program = (
        "import sys; from deploy.verbs import status\n"
        "def run(arguments): raise ZeroDivisionError('by a test')\n"
        "status.run = run; from deploy.splitd import main; sys.argv = ['splitd', 'status']; main()"
    )
    quiet, loud = (
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=TOP,
            check=False,
            env={**os.environ, "SPLITD_DEBUG": debug},
            capture_output=True,
            text=True,
            timeout=30,
        )
        for debug in ("", "1")
    )
    assert quiet.returncode == 1
    assert quiet.stderr == "splitd: ZeroDivisionError: by a test (SPLITD_DEBUG=1 shows where)\n"
    assert "Traceback" in loud.stderr


def test_a_file_in_place_of_a_directory_is_named_with_what_to_do(place: Path) -> None:
    """There is one line, and not only errno's words."""
    (place / "file").write_text("")
    done = splitd("up", "--root", place / "r", "--state", place / "file", ok=False)
    assert f"{place / 'file'}: a file is where a directory must be" in done.stderr


def test_a_root_that_another_node_uses_is_refused_until_that_node_ends(place: Path) -> None:
    """Two nodes on one root would wait for each other's locks: the second gets an error that names the first."""
    first, second = (Place(place / "r", place / name, None) for name in ("a", "b"))
    first.root.mkdir()
    with supervision.claimed(first) as lock:
        assert lock is not None
        supervision.claim_root(first)
        with pytest.raises(Failure, match=f"in use by the node at {first.state}"):
            supervision.claim_root(second)
    supervision.claim_root(second)


@pytest.mark.parametrize("left", [False, True], ids=["gone", "empty"])
def test_a_root_that_is_not_where_it_was_is_not_begun_anew(left: bool, place: Path) -> None:
    """Its disk is not mounted, or it was moved: an empty node in its place would look as if all images were lost."""
    root = place / "r"
    if left:
        root.mkdir()
    memory.keep(place / "s", memory.Remembered(root, None, root_given=True, config_given=False))
    done = splitd("up", "--state", place / "s", ok=False)
    assert f"was last started with root {root}, and nothing is there" in done.stderr
    assert "--root DIR --moved" in done.stderr
    assert not left or not any(root.iterdir())


def test_an_absurd_oom_score_is_refused(place: Path) -> None:
    """The kernel accepts -1000 to 1000; choom would fail on others in place of supervisord."""
    (place / "c.toml").write_text("oom_score = -5000\n")
    with pytest.raises(Failure, match="oom_score: -5000 is not between"):
        load_node(place / "c.toml")


@pytest.mark.parametrize(
    "words",
    [["pull", "team/UPPER:1"], ["pull", "x:1:2"], ["push", "x y"], ["images", "tag", "x", "x@sha256:1"]],
    ids=" ".join,
)
def test_a_name_that_is_none_is_named(words: list[str], place: Path) -> None:
    """It is refused before a node is called; the exit code is 1."""
    done = splitd(*words, "--state", place / "s", ok=None)
    assert done.returncode == 1
    assert done.stderr.startswith(f"splitd: {words[-1]}: invalid reference format")
    assert len(done.stderr.splitlines()) == 1


def test_a_password_is_not_asked_for_where_there_is_no_terminal(place: Path) -> None:
    """A script that forgot it must not hang."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "pull", "x", "--user", "me", "--state", str(place / "s")],
        cwd=TOP,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        start_new_session=True,
    )
    assert done.returncode == 2
    assert done.stderr == "splitd: --user: there is no terminal to ask for the password at: say NAME:PASSWORD\n"


def test_every_file_of_verbs_is_a_verb() -> None:
    """It has all parts of a verb."""
    assert {path.stem for path in (TOP / "deploy" / "verbs").glob("*.py")} - {"__init__"} == set(VERBS)
    for name in VERBS:
        verb = loaded(name)
        assert verb.HELP
        assert callable(verb.arguments)
        assert callable(verb.run)


def test_a_state_directory_may_lie_in_the_root(place: Path) -> None:
    """ROOT/state is a common choice: the check of the root does not refuse it."""
    here = Place(place / "r", place / "r" / "state", None)
    with supervision.claimed(here):
        supervision.claim_root(here)
        supervision.claim_root(here)
    assert here.state.is_dir()


def test_a_registry_in_trouble_has_a_line_in_the_status() -> None:
    """A good registry has none; one whose rest is over is asked again."""
    good = Registry("https://good.test", "good", 0.0, 0, "once", 5.0, 0.0)
    dead = replace(
        good,
        host="https://dead.test",
        state="dead",
        since=1000.0,
        failures=3,
        last_error="no connection: refused",
        rests_until=1100.0,
    )
    (first,) = troubled([good, dead], 1090.0)
    assert re.fullmatch(
        r"registry https://dead.test is dead for 1m30s \(since \S+ \S+\): no connection: refused; asked after all others for 10s \(until \S+ \S+\)",
        first,
    )
    (later,) = troubled([replace(dead, state="slow")], 1101.0)
    assert re.fullmatch(r"registry https://dead.test is slow for .*: refused; the next pull tries it", later)


def test_a_registry_that_refuses_parts_has_a_line_in_the_status() -> None:
    """It has one although it works, as long as whole blobs are requested."""
    host = Registry("https://good.test", "good", 0.0, 0, "", 5.0, 0.0, "GET /v2/x: 400 Bad Request", 1100.0)
    (line,) = troubled([host], 1090.0)
    assert re.fullmatch(
        r"registry https://good.test refuses parts of blobs \(GET /v2/x: 400 Bad Request\): .*; parts are asked for again in 10s \(at \S+ \S+\)",
        line,
    )
    assert troubled([host], 1101.0) == []


def test_an_imported_image_is_said_with_one_digest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """This holds also for an image without a name in the archive, which is named by its digest."""
    digest = "sha256:" + "0" * 64
    done = {
        "images": [{"name": f"import@{digest}", "digest": digest}, {"name": "box:1", "digest": digest}],
        "notImported": [],
        "bytes": 1,
        "seconds": 1.0,
        "rate": 1.0,
    }

    def at_once(work: Coroutine[object, object, object]) -> object:
        work.close()
        return done

    monkeypatch.setattr(transferring, "run", at_once)
    assert run(["images", "import", "box.tar"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [f"imported import@{digest}", f"imported box:1@{digest}"]


def test_a_full_disk_is_said_without_pythons_words() -> None:
    """The error of a failed write has no file name."""
    from deploy.splitd import _described

    said = _described(OSError(28, "No space left on device"))
    assert said == "no space left on device: the filesystem of the node's root or of its state is full (df shows which)"


@pytest.mark.parametrize(
    ("words", "unbuffered", "code", "said"),
    [
        ("config default >/dev/full", "", 1, UNPRINTED),
        ("--help >/dev/full", "1", 1, UNPRINTED),
        ("config default >&-", "", 0, ""),
        ("upp >/dev/full 2>&1", "", 1, ""),
        ("logs -f | read line", "", 128 + signal.SIGPIPE, ""),
    ],
)
def test_output_that_cannot_be_written(place: Path, words: str, unbuffered: str, code: int, said: str) -> None:
    """The exit code says so, and if that helps, a line: it blames no disk of the node. A reader that has gone is none."""
    log = place / "log" / "gateway.log"
    log.parent.mkdir()
    log.write_text("a line\n")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m deploy {words}"],
        cwd=TOP,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered, "SPLITD_ROOT": str(place), "SPLITD_STATE": str(place / "s")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.returncode, done.stderr) == ("", code, said)
