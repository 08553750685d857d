"""JSON from outside is read as Go reads it. The expectations here are the results of Go 1.26;
tests/fuzz/test_gojson_fuzz.py compares random documents with it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.kit import errors, gojson
from services.kit.gojson import (
    ANYTHING,
    BASE64,
    BOOLEAN,
    INTEGER,
    NUMBER,
    TEXT,
    UINT32,
    ListOf,
    Malformed,
    MapOf,
    Optional,
    Struct,
)

PLATFORM = Struct({"os": TEXT, "architecture": TEXT, "os.features": ListOf(TEXT)})
DOCUMENT = Struct(
    {
        "size": INTEGER,
        "kind": TEXT,
        "gid": UINT32,
        "ok": BOOLEAN,
        "data": BASE64,
        "any": ANYTHING,
        "seconds": NUMBER,
        "urls": ListOf(TEXT),
        "annotations": MapOf(TEXT),
        "platform": Optional(PLATFORM),
        "platforms": ListOf(PLATFORM),
        "named": MapOf(PLATFORM),
    }
)


def read(text: str | bytes, **options: Any) -> Any:
    return gojson.read(text if isinstance(text, bytes) else text.encode(), DOCUMENT, **options)


def refused(text: str | bytes) -> str:
    with pytest.raises(Malformed) as caught:
        read(text)
    return str(caught.value)


def deep(levels: int, kind: str = "[]") -> str:
    """Return a document of so many levels, all but one in a field that is not read."""
    inner = (
        "[" * (levels - 1) + "]" * (levels - 1) if kind == "[]" else '{"a":' * (levels - 1) + "1" + "}" * (levels - 1)
    )
    return f'{{"x":{inner},"kind":"k"}}'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"size":9223372036854775807,"Size":-9223372036854775808}', {"size": -(1 << 63)}),
        ('{"\u017fIZE":7,"\u212aind":"k"}', {"size": 7, "kind": "k"}),
        ('{"s\\u0069ze":7}', {"size": 7}),
        ('{"annotations":{"Size":"a","size":"b"}}', {"annotations": {"Size": "a", "size": "b"}}),
        ('{"annotations":{"a":"1"},"Annotations":{"b":"2"}}', {"annotations": {"a": "1", "b": "2"}}),
        ('{"annotations":{"a":"1"},"annotations":null}', {"annotations": None}),
        ('{"annotations":{"a":"1","a":null}}', {"annotations": {"a": ""}}),
        (
            '{"platform":{"os":"linux"},"platform":{"architecture":"arm"}}',
            {"platform": {"os": "linux", "architecture": "arm"}},
        ),
        ('{"platform":{"os":"linux"},"platform":null,"platform":{}}', {"platform": {}}),
        ('{"named":{"a":{"os":"linux"},"a":{"architecture":"arm"}}}', {"named": {"a": {"architecture": "arm"}}}),
        (
            '{"platforms":[{"os":"a"},{"os":"b"}],"platforms":[{"architecture":"x"}],"platforms":[{},{"architecture":"y"}]}',
            {"platforms": [{"os": "a", "architecture": "x"}, {"os": "b", "architecture": "y"}]},
        ),
        ('{"platforms":[{"os":"a"}],"platforms":[],"platforms":[{}]}', {"platforms": [{}]}),
        ('{"urls":["a","b"],"urls":[null]}', {"urls": ["a"]}),
        ('{"urls":[null]}', {"urls": [""]}),
        ('{"size":5,"size":null,"kind":"k","kind":null,"ok":true,"ok":null}', {"size": 5, "kind": "k", "ok": True}),
        ('{"data":"QQ==","any":[1,{"a":null}],"seconds":1.5}', {"data": b"A", "any": [1, {"a": None}], "seconds": 1.5}),
        ('{"data":"Q\\r\\nQ=="}', {"data": b"A"}),
        ('{"data":[65,66]}', {"data": b"AB"}),
        ('{"kind":"\\ud800x\\ud83d\\ude00\\udc00","x":"\\\\ud800"}', {"kind": "\ufffdx\U0001f600\ufffd"}),
        (
            '{"kind":"\\\\\\ud800\\ud800\\ud83d\\ude00\\ude00","x":"\\\\\\\\ud800"}',
            {"kind": "\\\ufffd\ufffd\U0001f600\ufffd"},
        ),
        (b'{"kind":"\xff\xe2\x82|\xed\xa0\x80"}', {"kind": "\ufffd\ufffd\ufffd|\ufffd\ufffd\ufffd"}),
        ('{"x":1E999,"y":' + "9" * 5000 + ',"z":{"z":1,"z":2}}', {}),
        ("null", {}),
        (" \t\r\n{} ", {}),
    ],
)
def test_a_document_is_what_go_makes_of_it(text: str | bytes, found: dict[str, Any]) -> None:
    """Names are matched without case, keys with it; of duplicates the last counts, merged; null; integers; invalid
    Unicode.
    """
    assert read(text) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "unexpected end of JSON input"),
        ('{"kind":"a', "unexpected end of JSON input"),
        ("[[", "unexpected end of JSON input"),
        ("<html>", 'invalid character "<" at byte 0'),
        ('{"é":1}x', 'invalid character "x" at byte 8'),
        ("\ufeff{}", 'invalid character "\\ufeff" at byte 0'),
        ('{"size":01}', 'invalid character "1" at byte 9'),
        ('{"kind":"a\nb"}', 'invalid character "\\n" at byte 10'),
        ('{"x":"NaN","size":NaN}', 'invalid character "N" at byte 18'),
        ('{"x":-Infinity}', 'invalid character "-" at byte 5'),
        (b'{"kind":\xff}', 'invalid character "\\ufffd" at byte 8'),
        ("[]", "a list instead of an object"),
        ('{"size":"1"}', "size: a string instead of an integer"),
        ('{"size":1.0}', "size: a number that is no integer from -9223372036854775808 to 9223372036854775807"),
        ('{"size":1e3}', "size: a number that is no integer from -9223372036854775808 to 9223372036854775807"),
        (
            '{"size":9223372036854775808}',
            "size: a number that is no integer from -9223372036854775808 to 9223372036854775807",
        ),
        ('{"size":true}', "size: a boolean instead of an integer"),
        ('{"gid":-1}', "gid: a number that is no integer from 0 to 4294967295"),
        ('{"SIZE":{}}', "size: an object instead of an integer"),
        ('{"annotations":{"a: b":1,"a: b":"c"}}', 'annotations["a: b"]: a number instead of a string'),
        ('{"platforms":[{},{"os.features":["",1]}]}', "platforms[1].os.features[1]: a number instead of a string"),
        ('{"platform":"linux"}', "platform: a string instead of an object"),
        ('{"urls":{}}', "urls: an object instead of a list"),
        ('{"data":"QQ"}', "data: a string that is not in base64"),
        ('{"data":"é==="}', "data: a string that is not in base64"),
        ('{"data":[256]}', "data[0]: a number that is no integer from 0 to 255"),
    ],
)
def test_documents_that_go_refuses_are_refused_in_plain_words(text: str | bytes, why: str) -> None:
    """The words give the place, and follow the name of the document."""
    assert refused(text) == why
    with pytest.raises(errors.InvalidArgument) as caught:
        gojson.document(
            text if isinstance(text, bytes) else text.encode(),
            DOCUMENT,
            "the list of host:5000",
            errors.InvalidArgument,
        )
    assert str(caught.value) == f"the list of host:5000: {why}: invalid argument"


@pytest.mark.parametrize("kind", ["[]", "{}"])
def test_ten_thousand_levels_are_read(kind: str) -> None:
    """One more level is refused, as in Go."""
    assert read(deep(10_000, kind)) == {"kind": "k"}
    assert refused(deep(10_001, kind)) == "exceeded max depth"
    assert len(json.dumps(gojson.read(("[" * 50 + "]" * 50).encode(), ANYTHING))) == 100


@pytest.mark.parametrize("levels", [3, 99, 100, 101, 102, 1500])
@pytest.mark.parametrize("damage", ["}", ",", ":", '"', "1", "]", "[[", '{"a"', "nul", '"\\x"', "\x00", "-", "1.e"])
def test_both_scanners_say_the_same(levels: int, damage: str) -> None:
    """They agree at each depth, for valid and for invalid documents, wherever the error is."""
    good = deep(levels)

    def said(text: str, **options: Any) -> Any:
        try:
            return read(text, **options)
        except Malformed as error:
            return str(error)

    for text in (
        good,
        *(good[:at] + damage + good[at:] for at in (0, 1, 6, 6 + levels // 2, 5 + levels, len(good) - 11, len(good))),
    ):
        assert said(text, shallow=0) == said(text), text


def test_strings_are_neither_depth_nor_values() -> None:
    """Brackets and commas in them do not count."""
    text = json.dumps({"kind": '["\\' * 30_000 + "[,{" * 300_000})
    assert read(text)["kind"] == json.loads(text)["kind"]


def test_a_document_of_too_many_values_is_refused() -> None:
    """The process must not be blocked for long by one document."""
    assert read('{"x":[' + "1," * (gojson.VALUES - 10) + "1]}") == {}
    assert refused('{"x":[' + "1," * gojson.VALUES + "1]}") == f"{gojson.VALUES + 2} values, more than {gojson.VALUES}"
    assert (
        refused('{"x":[' + "[]," * gojson.VALUES + "1]}")
        == f"{2 * gojson.VALUES + 2} values, more than {gojson.VALUES}"
    )
    many = "[" * 101 + "1," * gojson.DEEP_VALUES + "1" + "]" * 101
    assert (
        refused(many)
        == f"{gojson.DEEP_VALUES + 101} values, more than {gojson.DEEP_VALUES} in a document 101 levels deep"
    )


def test_a_token_server_may_send_a_mark_and_more() -> None:
    """Go's Decoder ignores bytes after the first document; a byte order mark is accepted by us alone."""
    assert gojson.read(b'\xef\xbb\xbf{"kind":"a"}', DOCUMENT, mark=True) == {"kind": "a"}
    assert gojson.read(b' {"kind":"a"} <rest', DOCUMENT, first=True) == {"kind": "a"}
    assert gojson.read(b'{"kind":"\\ud800"}\0\0', DOCUMENT, first=True) == {"kind": "\ufffd"}
    assert gojson.read(deep(200).encode() + b"[", DOCUMENT, first=True) == {"kind": "k"}
    with pytest.raises(Malformed):
        gojson.read(b'{"kind":"a"} <rest', DOCUMENT)
