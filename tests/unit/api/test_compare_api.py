"""scripts/compare_api: the differences that it reports."""

from types import ModuleType

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

FILE = """
name: "x.proto" package: "x" syntax: "proto3"
message_type {
  name: "Blob"
  field { name: "digest" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "sizes" number: 2 label: LABEL_REPEATED type: TYPE_INT64 }
}
enum_type { name: "Kind" value { name: "UNKNOWN" number: 0 } value { name: "VIEW" number: 1 } }
service { name: "Blobs" method { name: "List" input_type: ".x.Blob" output_type: ".x.Blob" server_streaming: true } }
"""


def declared(compare_api: ModuleType, text: str = FILE) -> dict[str, str]:
    files = FileDescriptorSet(file=[text_format.Parse(text, FileDescriptorProto())])
    result: dict[str, str] = compare_api.declarations(files)
    return result


def test_equal_descriptors_do_not_differ(compare_api: ModuleType) -> None:
    theirs = declared(compare_api)
    assert len(theirs) == 8
    assert compare_api.compare(theirs, declared(compare_api), {}) == []
    assert compare_api.additions(theirs, theirs) == []


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("number: 1 label", "number: 3 label", ["x.Blob field 1: missing, theirs is `string digest`"]),
        ("TYPE_STRING", "TYPE_BYTES", ["x.Blob field 1: theirs is `string digest`, ours is `bytes digest`"]),
        ('"digest"', '"name"', ["x.Blob field 1: theirs is `string digest`, ours is `string name`"]),
        (
            "LABEL_REPEATED",
            "LABEL_OPTIONAL",
            ["x.Blob field 2: theirs is `repeated int64 sizes`, ours is `int64 sizes`"],
        ),
        (
            "type: TYPE_STRING",
            "type: TYPE_STRING proto3_optional: true oneof_index: 0",
            ["x.Blob field 1: theirs is `string digest`, ours is `optional string digest`"],
        ),
        ('"VIEW" number: 1', '"VIEW" number: 2', ["x.Kind value VIEW: theirs is `1`, ours is `2`"]),
        (
            "server_streaming: true",
            "",
            ["x.Blobs method List: theirs is `(x.Blob) returns (stream x.Blob)`, ours is `(x.Blob) returns (x.Blob)`"],
        ),
        (
            'output_type: ".x.Blob"',
            'output_type: ".x.Info"',
            [
                (
                    "x.Blobs method List: theirs is `(x.Blob) returns (stream x.Blob)`,"
                    " ours is `(x.Blob) returns (stream x.Info)`"
                )
            ],
        ),
    ],
)
def test_a_change_is_named(compare_api: ModuleType, old: str, new: str, lines: list[str]) -> None:
    assert old in FILE
    ours = declared(compare_api, FILE.replace(old, new))
    assert compare_api.compare(declared(compare_api), ours, {}) == lines


def test_additions_of_ours_are_no_differences(compare_api: ModuleType) -> None:
    theirs, ours = declared(compare_api), declared(compare_api)
    ours |= {"x.Blob field 9": "string ref", "x.New": "message", "x.New field 1": "string id"}
    assert compare_api.compare(theirs, ours, {}) == []
    assert compare_api.additions(theirs, ours) == ["x.Blob field 9: string ref", "x.New: message"]


def test_a_moved_message_is_compared_where_it_is_now(compare_api: ModuleType) -> None:
    moved = compare_api.move(declared(compare_api), {"x.Blob": "y.Blob"})
    assert moved["y.Blob field 1"] == "string digest"
    assert moved["x.Blobs method List"] == "(y.Blob) returns (stream y.Blob)"
    assert not any(name.startswith("x.Blob ") for name in moved)


def test_two_that_became_one_must_have_been_equal(compare_api: ModuleType) -> None:
    theirs = {"a.E field 1": "string x", "b.E field 1": "bytes x"}
    moved = compare_api.move(theirs, {"a.E": "c.E", "b.E": "c.E"})
    assert compare_api.compare(moved, {"c.E field 1": "string x"}, {}) != []


def test_a_row_covers_a_declaration_a_message_or_a_package(compare_api: ModuleType) -> None:
    theirs = {"x.Blob field 1": "string digest", "x.Blob": "message", "x.Blobs": "service"}
    assert compare_api.compare(theirs, {}, {"x": ""}) == []
    assert len(compare_api.compare(theirs, {}, {"x.Blob": ""})) == 1
    assert len(compare_api.compare(theirs, {}, {"x.Blob field 1": ""})) == 2


def test_a_row_that_is_no_longer_true_is_a_difference(compare_api: ModuleType) -> None:
    theirs = declared(compare_api)
    lines = compare_api.compare(theirs, theirs, {"x.Kind": "not served yet"})
    assert lines[0] == "x.Kind: listed as absent (x.Kind), but ours have it"


def test_every_row_has_its_reason(compare_api: ModuleType) -> None:
    assert all(reason for reason in (compare_api.REMOVED | compare_api.LATER).values())
