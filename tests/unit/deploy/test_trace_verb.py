"""``splitd trace`` on files: what it prints for people and for programs, and that exports come back as they were."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from deploy.failure import Failure
from deploy.splitd import run
from deploy.verbs import trace as verb
from services.traces import convert, otlp_json
from services.traces.store import Status
from tests.unit.traces.spans import T0, Spans

PLACE = ["--root", "/nowhere/r", "--state", "/nowhere/s"]


def pull(number: int, seconds: float = 1.0, *, host: str = "registry.test", **attributes: Any) -> Spans:
    """A pull that waits for bytes all the time, in the minute ``number``."""
    spans, begin = Spans(f"{number:02x}" * 16), number * 60_000
    root = spans.add(
        "splitd.pull",
        begin,
        begin + seconds * 1000,
        service="splitd-gateway",
        splitd__operation="pull",
        splitd__namespace="default",
        splitd__outcome="ok",
        container__image__name=f"{host}/box:{number}",
        **attributes,
    )
    request = spans.add("registry.request", begin, begin + seconds * 1000, root, server__address=host)
    spans.add("registry.transfer", begin, begin + seconds * 1000, request, splitd__bytes=1_000_000)
    return spans


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Twenty-five pulls, of which three are slow and from another host; the newest failed."""
    made = [pull(n, 1.0) for n in range(1, 22)] + [pull(n, 12.0, host="slow.test") for n in range(22, 25)]
    failed = pull(25, 2.0, host="registry.test")
    failed.spans[0] = type(failed.spans[0])(
        **{
            **{name: getattr(failed.spans[0], name) for name in type(failed.spans[0]).__slots__},
            "status": Status.ERROR,
            "message": "no such tag",
            "attributes": {**failed.spans[0].attributes, "splitd.outcome": "failed"},
        }
    )
    path = tmp_path / "traces.json"
    path.write_text(json.dumps(otlp_json.spans_to_json([s for each in [*made, failed] for s in each.spans])))
    return path


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert run(["trace", *map(str, words), *PLACE]) == 0
    return capsys.readouterr().out


def test_a_list_is_of_the_newest_first_and_selects(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By how long it took, what it was, and how it ended."""

    def images(*words: str) -> list[str]:
        return [each["image"] for each in json.loads(said(capsys, "ls", "--file", file, "--json", *words))]

    assert images()[:2] == ["registry.test/box:25", "slow.test/box:24"]
    assert len(images()) == 25
    assert images("--slow") == ["slow.test/box:24", "slow.test/box:23", "slow.test/box:22"]
    assert images("--slow", "1.5")[0] == images("--slow", "1500ms")[0] == "registry.test/box:25"
    assert len(images("--slow", "12000ms")) == len(images("--slow", "0m12s")) == 3
    assert images("--slow", "12001ms") == []
    assert images("--failed") == ["registry.test/box:25"]
    assert images("--image", "box:7") == ["registry.test/box:7"]
    assert images("--operation", "push") == images("--namespace", "other") == images("--since", "1s") == []
    assert len(images("--since", "2023-11-14T22:36:00Z")) == 3
    assert len(images("--limit", "4")) == 4
    head, newest, *_ = said(capsys, "ls", "--file", file).splitlines()
    assert head.split() == ["TRACE", "BEGUN", "TOOK", "OPERATION", "OUTCOME", "SPANS", "NAMESPACE", "ABOUT"]
    assert newest.split()[0] == "19" * 6
    assert newest.split()[-5:] == ["pull", "failed", "3", "default", "registry.test/box:25"]


def test_slow_is_what_the_configuration_says(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same number for the list, for the store and for what a pull says."""
    config = tmp_path / "c.toml"
    config.write_text('[traces]\nslow = "1500ms"\n')
    found = json.loads(said(capsys, "ls", "--file", file, "--json", "--slow", "--config", config))
    assert [each["seconds"] for each in found] == [2.0, 12.0, 12.0, 12.0]
    config.write_text("[traces]\nslow = nonsense\n")
    found = json.loads(said(capsys, "ls", "--file", file, "--json", "--slow", "--config", config))
    assert [each["seconds"] for each in found] == [12.0, 12.0, 12.0]


def test_show_begins_with_the_verdict(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the newest pull, if none is named; for programs its causes and its path each add up to the whole."""
    first, *rest = said(capsys, "show", "--file", file).splitlines()
    assert first.startswith("failed after 2.0 s: no such tag; 2.0 of 2.0 s: waiting for bytes from registry.test")
    assert any(line.startswith("* ") and "registry.transfer" in line for line in rest)
    named = said(capsys, "show", "18" * 3, "--file", file)
    assert named.startswith("12.0 of 12.0 s: waiting for bytes from slow.test at 83 KB/s")
    found = json.loads(said(capsys, "show", "18" * 16, "--file", file, "--json"))
    assert (found["trace"], len(found["spans"]), found["outcome"]) == ("18" * 16, 3, "ok")
    verdict = found["verdict"]
    assert named.startswith(verdict["sentence"][:40])
    assert sum(each["seconds"] for each in verdict["causes"]) == pytest.approx(verdict["wall"]) == 12.0
    assert sum(each["seconds"] for each in verdict["path"]) == pytest.approx(12.0)


def test_compare_says_where_the_difference_is(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stage by stage; the rows add up to the whole."""
    sentence, _, head, *rows = said(capsys, "compare", "01", "18", "--file", file).splitlines()
    assert sentence.startswith("the second took 11.0 s longer (1.0 s and 12.0 s)")
    assert head.split() == ["STAGE", "CAUSE", "01" * 6, "18" * 6, "DIFFERENCE"]
    assert rows[-1].split() == ["all", "1.00", "s", "12.0", "s", "+11.0", "s"]
    found = json.loads(said(capsys, "compare", "01", "18", "--file", file, "--json"))
    assert sum(row["difference"] for row in found["rows"]) == pytest.approx(11.0)


def test_why_slow_names_what_the_slow_ones_have(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here it is the host."""
    text = said(capsys, "why-slow", "--file", file)
    assert text.startswith("the slowest 3 of 24 pulls took 12.0 s and longer")
    assert f"splitd trace show {'18' * 6} --file {file} says what it waited for" in text
    assert any(line.split() == ["host", "slow.test", "3", "of", "3", "0", "of", "21"] for line in text.splitlines())
    found = json.loads(said(capsys, "why-slow", "--file", file, "--json"))
    assert [each["value"] for each in found["findings"] if each["attribute"] == "host"] == ["slow.test"]


def test_a_pull_without_a_root_is_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gateway was killed: its spans are lost, and those of the other processes say what it was."""
    spans = Spans("ab" * 16)
    about: Any = {"container__image__name": "registry.test/box:1", "splitd__namespace": "k8s.io"}
    spans.add("Leases/Create", 0, 100, "e" * 16, service="splitd-metadata", status=Status.ERROR)
    spans.add("images.pull", 100, 3000, "e" * 16, **about)
    file = tmp_path / "traces.json"
    file.write_text(json.dumps(otlp_json.spans_to_json([*pull(1).spans, *spans.spans])))
    [row] = said(
        capsys, "ls", "--operation", "pull", "--image", "box:1", "--namespace", "k8s.io", "--file", file
    ).split("\n")[1:-1]
    assert row.split()[0] == "ab" * 6
    assert row.split()[-5:] == ["pull", "failed", "2", "k8s.io", "registry.test/box:1"]
    text = said(capsys, "show", "ab", "--file", file)
    assert "not recorded, in images.pull" in text
    assert "the root of this trace was not recorded" in " ".join(text.split())


def test_a_list_and_one_trace_say_the_same_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The root's, whatever goes on after it."""
    spans = pull(1, 2.0)
    spans.add("images.late", 61_000, 80_000, spans.spans[0].id, splitd__background=True)
    file = tmp_path / "traces.json"
    file.write_text(json.dumps(otlp_json.spans_to_json(spans.spans)))
    [listed] = json.loads(said(capsys, "ls", "--file", file, "--json"))
    assert listed["seconds"] == json.loads(said(capsys, "show", "01", "--file", file, "--json"))["verdict"]["wall"] == 2
    assert json.loads(said(capsys, "ls", "--slow", "3", "--file", file, "--json")) == []


def test_why_slow_counts_what_is_asked_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says what it is."""
    text = said(capsys, "why-slow", "--operation", "collect", "--file", file)
    assert text == "0 collections are too few to tell: 20 are needed.\n"


def test_an_export_comes_back_as_it_was(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard output and in a file; OTLP has all that a span has."""
    out = tmp_path / "one.json"
    said(capsys, "export", "18", "--file", file, "-o", out)
    again = said(capsys, "export", "18", "--file", out)
    assert json.loads(again) == json.loads(out.read_text())
    key = lambda span: span.id
    spans = otlp_json.spans_from_json(json.loads(again)).spans
    assert sorted(spans, key=key) == sorted(pull(24, 12.0, host="slow.test").spans, key=key)
    assert convert.spans_to_pb(spans).resource_spans


@pytest.mark.parametrize(("format_", "key"), [("chrome", "traceEvents"), ("speedscope", "profiles")])
def test_an_export_for_a_viewer_is_json(format_: str, key: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its form has tests of its own."""
    assert json.loads(said(capsys, "export", "18", "--format", format_, "--file", file))[key]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "ff"], r"trace ff: not found \(splitd trace ls --file '.*/a file.json' prints those in it\)"),
        (["show", "0x12"], "'0x12' is no id of a trace"),
        (["show", ""], "'' is no id of a trace"),
        (["compare", "01", "\x1b[2J"], "is no id of a trace"),
    ],
)
def test_a_trace_that_is_not_there(words: list[str], message: str, file: Path, tmp_path: Path) -> None:
    """One line says so, and what to do."""
    file = file.rename(tmp_path / "a file.json")
    with pytest.raises(Failure, match=message):
        run(["trace", *words, "--file", str(file), *PLACE])


def test_a_file_without_a_pull_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its one trace, whatever that is; of several the newest operation, or else the newest."""

    def shown(*made: Spans) -> str:
        path = tmp_path / "traces.json"
        path.write_text(json.dumps(otlp_json.spans_to_json([span for each in made for span in each.spans])))
        found: str = json.loads(said(capsys, "show", "--file", path, "--json"))["trace"]
        return found

    def one(digit: str, begin: float, operation: str) -> Spans:
        spans = Spans(digit * 32)
        spans.add("x", begin, begin + 1, splitd__operation=operation)
        return spans

    call, run_, push, late = (
        one(*of) for of in (("1", 0, "Images.Get"), ("2", 1, "run"), ("3", 2, "push"), ("4", 3, ""))
    )
    routine = one("5", 9, "Images.List")
    assert shown(call) == "1" * 32
    assert shown(call, routine) == "5" * 32
    assert shown(run_, push, call, routine) == "3" * 32
    assert shown(late) == "4" * 32
    assert shown(push, pull(0)) == "00" * 16


def test_spans_without_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody else's file may have any."""
    spans, path = Spans(), tmp_path / "x"
    spans.add("", 0, 1000, spans.add("", 0, 1000, service=""), service="")
    path.write_text(json.dumps(otlp_json.spans_to_json(spans.spans)))
    text = said(capsys, "show", "--file", path)
    assert text.startswith("1.0 of 1.0 s: not recorded, in spans without a name.\n")
    assert ", 2 spans.\n" in text
    assert "(without a name)" in text
    assert "(without a name)" in said(capsys, "ls", "--file", path)


def test_a_file_whose_last_line_is_cut_is_shown_with_a_warning(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A collector may be writing it."""
    whole = file.read_text()
    file.write_text(f"{whole}\n{whole[:100]}")
    assert run(["trace", "show", "--file", str(file), *PLACE]) == 0
    out = capsys.readouterr()
    assert out.out.startswith("failed after 2.0 s")
    assert f"{file}: line 2, the last, was left out, since it is not complete" in out.err


def test_an_id_that_several_begin_with(file: Path) -> None:
    """It names two of them."""
    with pytest.raises(Failure, match=f"trace 1: several begin so, such as {'10' * 16} and {'11' * 16}"):
        run(["trace", "show", "1", "--file", str(file), *PLACE])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", None),
        ("90", 90),
        ("1500ms", 1.5),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("20231114", 80_000),
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        ("3d", 259_200),
        ("2023-11-14T22:13:20Z", 0),
    ],
)
def test_times_that_since_takes(text: str, seconds: float | None) -> None:
    """Ago, or a date; one without a zone is of this machine's."""
    assert verb.since(text, T0) == (0 if seconds is None else T0 - seconds * 10**9)
    local = datetime.datetime.fromtimestamp(T0 / 1e9).isoformat()  # noqa: DTZ006
    assert verb.since(local, 0) == T0


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("99999999d", 0),
        ("0001-01-01T00:00:00Z", 0),
        ("1960-01-01", 0),
        ("2300-01-01", 2**63 - 1),
        ("9999-12-31T23:59:59Z", 2**63 - 1),
    ],
)
def test_a_time_before_or_after_all_that_can_be_asked_for(text: str, asked: int) -> None:
    assert verb.since(text, T0) == asked
