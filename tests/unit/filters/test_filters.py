"""containerd's filter language: its matches, its errors and their words."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from api.containerd.services.images.v1.images_pb2 import ListImagesRequest
from services.kit import errors, filters, regexp
from services.kit.slices import Lane, at_once

CONTAINERS: dict[str, dict[str, str]] = {
    "web": {"image": "docker.io/library/nginx:1", "team": "blue", "io.cri-containerd.kind": "sandbox"},
    "db": {"image": "docker.io/library/postgres:15", "team": "red", 'odd "label" \\ here': "yes"},
    "tool": {"image": "busybox, really"},
}


def adaptor(name: str) -> filters.Adaptor:
    labels = CONTAINERS[name]

    def field(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "id":
            return name, True
        if path[0] == "image":
            return labels["image"], True
        if path[0] == "labels":
            return filters.of_map(path[1:], labels)
        return "", False

    return field


def selected(*sources: str) -> set[str]:
    chosen = filters.parse(sources)
    return {name for name in CONTAINERS if chosen.match(adaptor(name))}


ALL = {"web", "db", "tool"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", ALL),
        ("id", ALL),
        ("nothing", set()),
        ("id==web", {"web"}),
        ("id!=web", {"db", "tool"}),
        ("id == web", {"web"}),
        ("labels.team", {"web", "db"}),
        ("labels.team==blue", {"web"}),
        ("labels.team!=blue", {"db", "tool"}),
        ("labels.io.cri-containerd.kind==sandbox", None),
        ('labels."io.cri-containerd.kind"==sandbox', {"web"}),
        ('labels.io."cri-containerd".kind==sandbox', {"web"}),
        ('labels."odd \\"label\\" \\\\ here"==yes', {"db"}),
        ("labels.team==blue,id==web", {"web"}),
        ("labels.team==blue, id==db", set()),
        ("image==docker.io/library/nginx:1", {"web"}),
        ('image=="busybox, really"', {"tool"}),
        ('image=="busybox\\x2c\\u0020\\162eally"', {"tool"}),
        ("image~=library", {"web", "db"}),
        ("image~=^docker", {"web", "db"}),
        ("image~=[0-9]{2}$", {"db"}),
        ("image~=/busybox, r/", {"tool"}),
        ("image~=|a{0,1},|", {"tool"}),
        ('image~="ng[i]nx"', {"web"}),
        ("labels.team~=/.*/", ALL),
        ("labels.team~=^$", {"tool"}),
        ("image~=(unclosed", set()),
    ],
)
def test_selects(source: str, expected: set[str] | None) -> None:
    """A filter selects what containerd's selects; a dash in a bare field name is a syntax error there too."""
    if expected is None:
        with pytest.raises(errors.InvalidArgument):
            selected(source)
    else:
        assert selected(source) == expected


def test_any_of_several_filters() -> None:
    """If there are several filters, one must match; none at all, or an empty one, matches everything."""
    assert selected("id==web", "labels.team==red") == {"web", "db"}
    assert selected() == ALL
    assert selected("id==web", "") == ALL


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("id=web", 'filters: parse error: [id >|=|< web]: unsupported operator "=": invalid argument'),
        ("id===web", 'filters: parse error: [id >|=|< ==web]: unsupported operator "===": invalid argument'),
        ("id==web,", "filters: parse error: [id==web,]: expected field or quoted: invalid argument"),
        ("labels.", "filters: parse error: [labels.]: expected field or quoted: invalid argument"),
        ("id==", "filters: parse error: [id==]: expected value or quoted: invalid argument"),
        ("id==,x", "filters: parse error: [id== >|,|< x]: expected value or quoted: invalid argument"),
        ("id-x", 'filters: parse error: [id >|-|< x]: expected an operator ("=="|"!="|"~="): invalid argument'),
        ("==x", "filters: parse error: [ >|=|< =x]: expected field or quoted: invalid argument"),
        ("id==web junk", "filters: parse error: [id==web >| |< junk]: unexpected input:  : invalid argument"),
        ("labels.|a|==b", "filters: parse error: [labels. >|||< a|==b]: invalid quote encountered: invalid argument"),
        ("id==/web/", "filters: parse error: [id== >|/|< web/]: invalid quote encountered: invalid argument"),
        ("id==/web", "filters: parse error: [id== >|/|< web]: quoted literal not terminated: invalid argument"),
        ("id~=/a\\.b/", "filters: parse error: [id~= >|/|< a\\.b/]: illegal escape sequence: invalid argument"),
        ('id=="\\u12"', 'filters: parse error: [id== >|"|< \\u12"]: illegal numeric escape sequence: invalid argument'),
        (
            'id=="\\777"',
            'filters: parse error: [id== >|"|< \\777"]: unquoting failed: quote syntax error: invalid argument',
        ),
        ("id==a\x00b", "filters: parse error: [id==a >|\x00|< b]: unexpected input: �: invalid argument"),
    ],
)
def test_refuses(source: str, message: str) -> None:
    """A malformed filter is InvalidArgument; the message shows the place, in containerd's words."""
    with pytest.raises(errors.InvalidArgument) as caught:
        filters.parse(["id", source])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            ["x" * (filters.CHARACTERS + 1)],
            f"filters: {filters.CHARACTERS + 1} characters, at most {filters.CHARACTERS}",
        ),
        ([""] * (filters.SELECTORS + 1), f"filters: {filters.SELECTORS + 1} filters, at most {filters.SELECTORS}"),
        (["a" + ",a" * filters.SELECTORS], f"filters: {filters.SELECTORS + 1} selectors, at most {filters.SELECTORS}"),
        (
            ["a~=b"] * (filters.EXPRESSIONS + 1),
            f"filters: {filters.EXPRESSIONS + 1} regular expressions, at most {filters.EXPRESSIONS}",
        ),
        ([f"a~={'b' * 5000}"] * 2, f"filters: regular expressions of 10000 characters, at most {regexp.EXPRESSION}"),
    ],
)
def test_a_request_is_bounded(sources: list[str], message: str) -> None:
    """All its filters count together, before any is parsed."""
    with pytest.raises(errors.InvalidArgument) as caught:
        filters.parse(sources)
    assert str(caught.value) == f"{message}: invalid argument"


def test_each_condition_is_asked_once() -> None:
    """A client may repeat one two thousand times, or name two thousand values: neither takes longer than one does, and
    the result is the same.
    """
    many = [f"id==x{n}" for n in range(2000)]
    assert selected(*many) == set()
    assert selected(*many, "id==db", "labels.team==blue") == {"db", "web"}
    assert selected("id==db,id==db", 'labels.nothing==""') == {"db"}
    assert filters.parse([*many, "id==db"]).cost == 1
    assert filters.parse([",".join(["labels.team"] * 2000)]).cost == 1
    assert filters.parse(["id~=(a+)+$"] * 64).cost == filters.parse(["id~=(a+)+$"]).cost
    assert filters.parse(["id==a", "id!=b,id==c", "labels.team"]).cost == 4


@pytest.mark.parametrize(
    "sources",
    [
        [],
        ["id==db"],
        ["id==x", "id~=^w,labels.team"],
        ["labels.none", "id!=db,image~=nginx"],
        ["labels.none"],
        ["id==x", ""],
    ],
)
def test_a_match_in_slices_is_the_same(sources: list[str]) -> None:
    """Events are matched so, since a match may take long."""
    wanted = filters.parse(sources)
    for name in CONTAINERS:
        assert at_once(wanted.matching(adaptor(name))) == wanted.match(adaptor(name))


def test_the_work_of_a_match_is_shared() -> None:
    """A request's expressions together have the limit of one."""
    one, many = (filters.parse(["id~=(a|b)*a(a|b){50}c"] * count) for count in (1, 64))
    assert one.match(lambda path: ("a" * 1000 + "c", True))
    assert many.match(lambda path: ("a" * 100 + "c", True))
    assert not many.match(lambda path: ("a" * 1000 + "c", True))


def test_a_label_with_a_bad_byte() -> None:
    """A byte that is no UTF-8 is one character for a regular expression, if it is in the field; in the expression it is
    refused.
    """
    assert filters.parse(["labels.x~=^a.$"]).match(lambda path: ("a\udcff", True))
    assert not filters.parse(['labels.x~="a\\xff"']).match(lambda path: ("a\udcff", True))


def test_an_error_of_a_long_filter_is_short() -> None:
    """It is sent in a header: it shows the surroundings of the place."""
    with pytest.raises(errors.InvalidArgument) as caught:
        filters.parse(["id==a," * 2000 + "id=x," + "id==b," * 2000])
    assert " >|=|< x," in str(caught.value)
    assert len(str(caught.value)) < 2500


FULL = filters.CHARACTERS - 100


@pytest.mark.parametrize(
    "sources",
    [
        pytest.param(['name=="' + r"\x41\n" * (FULL // 6) + '"'], id="escapes"),
        pytest.param(['name=="' + r"\q" * (FULL // 2) + '"'], id="wrong escapes"),
        pytest.param(['name=="' + "|" * FULL + '"'], id="other quotes"),
        pytest.param(["name==" + "\u00e9" * FULL], id="letters beyond ASCII"),
        pytest.param([" " * FULL + "name"], id="blanks"),
        pytest.param([",".join(["name"] * filters.SELECTORS)], id="selectors"),
        pytest.param([",".join(f"a!=x{n}" for n in range(filters.SELECTORS))], id="different selectors"),
        pytest.param([",".join(['"a"=="b"'] * filters.SELECTORS)], id="quoted selectors"),
        pytest.param([f"name==x{n}" for n in range(filters.SELECTORS)], id="filters"),
        pytest.param(['"a"' + '."a"' * (FULL // 4)], id="a quoted path"),
        pytest.param(["a" + ".a" * (FULL // 2)], id="a path"),
        pytest.param(["name~=" + "." * regexp.EXPRESSION], id="an expression"),
        pytest.param(["name~=" + "a|" * (regexp.EXPRESSION // 2)], id="alternatives"),
        pytest.param(["name~=a" + str(n) for n in range(filters.EXPRESSIONS)], id="expressions"),
    ],
)
def test_reading_at_the_bounds_goes_in_small_steps(sources: list[str]) -> None:
    """Between two steps only a few operations are done for each of the 2,000 conditions of a request: a loop that
    parses filters can always stop for other work.
    """
    reading, most = filters._reading(sources), 0
    while True:
        most = max(most, counted(lambda: next(reading, None)))
        if inspect.getgeneratorstate(reading) == inspect.GEN_CLOSED:
            break
    assert most < 4 * filters.SELECTORS


def counted(work: Callable[[], Any]) -> int:
    """Return how many functions ``work`` calls."""
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    except errors.InvalidArgument:
        pass  # work all the same
    finally:
        sys.setprofile(None)
    return calls


def test_too_many_filters_are_counted_only() -> None:
    """They are not decoded to strings of Python's."""
    request = ListImagesRequest(filters=["x"] * 100_000)
    assert counted(lambda: filters.parse(request.filters)) < 100


async def test_reading_in_a_loop_is_the_same() -> None:
    """The filter, or the error, is the same."""
    sources = ["a==b", "c.d!=e,f~=g"]
    assert await filters.parsed(sources, Lane()) == filters.parse(sources)
    with pytest.raises(errors.InvalidArgument, match="unsupported operator"):
        await filters.parsed(["a=b"], Lane())
