"""The TAB completion of the splitd command, and its man page: both are made from its parser."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import manual
from deploy.splitd import parser
from deploy.verbs import VERBS
from tests import copies
from tests.support import TOP, splitd


def completed(line: str, tmp_path: Path) -> set[str]:
    """Return the command's answer to a TAB at the end of ``line``, as bash asks for it."""
    answer = tmp_path / "answer"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    done = copies.run([sys.executable, "-m", "deploy"], environment, 60)
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in answer.read_text().split("\n")}


@pytest.mark.parametrize(
    ("line", "there", "not_there"),
    [
        ("splitd ", set(VERBS), {"ls"}),
        ("splitd res", {"restart"}, {"status"}),
        ("splitd images re", {"remove"}, {"rm"}),
        ("splitd trace ", {"show", "compare", "why-slow", "top"}, {"up"}),
        ("splitd trace export --format ", {"otlp", "chrome", "speedscope"}, {"zipkin"}),
        ("splitd restart gat", {"gateway"}, {"content"}),
        ("splitd pull --pl", {"--platform", "--plain-http"}, {"--quiet"}),
        ("splitd completion z", {"zsh"}, {"bash"}),
    ],
)
def test_tab_knows_verbs_actions_options_and_services(
    line: str, there: set[str], not_there: set[str], tmp_path: Path
) -> None:
    """It completes everything that begins like the word at the cursor."""
    found = completed(line, tmp_path)
    assert there <= found
    assert not not_there & found


def test_tab_says_nothing_of_a_node_that_is_not_up(tmp_path: Path) -> None:
    """It completes no images, and prints no error."""
    assert completed(f"splitd images inspect --state {tmp_path}/s ", tmp_path) <= {
        "",
        "-h",
        "--help",
        "--namespace",
        "--root",
        "--state",
        "--config",
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str) -> None:
    """bash can parse its own."""
    script = splitd("completion", shell).stdout
    assert "splitd" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=30)


def options(top: argparse.ArgumentParser) -> set[str]:
    """The long options of a parser and of all below it."""
    found = {word for action in top._actions for word in action.option_strings if word.startswith("--")}
    children = [
        child
        for action in top._actions
        if isinstance(action, argparse._SubParsersAction)
        for child in action.choices.values()
    ]
    return found.union(*map(options, children))


def test_the_man_page_has_every_verb_and_option() -> None:
    """It has no line that man takes for an unknown request."""
    page = manual.page(parser())
    plain = page.replace("\\-", "-")
    assert all(f".SS splitd {verb}" in plain for verb in VERBS)
    assert not {option for option in options(parser()) - {"--help", "--version"} if option not in plain}
    assert {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))} == {
        ".TH",
        ".SH",
        ".SS",
        ".TP",
    }
    if shutil.which("groff"):
        assert not subprocess.run(
            ["groff", "-man", "-ww", "-z"], input=page, text=True, check=True, capture_output=True, timeout=60
        ).stderr


def test_install_puts_command_page_and_completion_below_its_prefix(tmp_path: Path) -> None:
    """Uninstall removes them; no other file is touched."""
    said = subprocess.run(
        ["make", "-n", "install", f"PREFIX={tmp_path}"], cwd=TOP, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    removed = subprocess.run(
        ["make", "-n", "uninstall", f"PREFIX={tmp_path}"],
        cwd=TOP,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    made = {
        word.rstrip('"')
        for line in said.splitlines()
        if line.startswith(("ln ", ".venv"))
        for word in line.replace(">", " ").split()
        if word.startswith(f"{tmp_path}/")
    }
    assert len(made) == 5
    assert all(path in removed.split() for path in made)
