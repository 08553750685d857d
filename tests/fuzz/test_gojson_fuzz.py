"""Random documents, valid, nearly valid and invalid, are read by ``kit/gojson.py`` and by Go: both read the same, or
both refuse.

``make fuzz`` runs it for a tenth of its time, from a random seed; here 4,000 documents are read, from the seed that a
failure prints.
"""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from services.kit import gojson
from services.kit.gojson import (
    BASE64,
    BOOLEAN,
    INTEGER,
    TEXT,
    UINT32,
    ListOf,
    Malformed,
    MapOf,
    Optional,
    Shape,
    Struct,
)
from tests.interop.programs import go_program

PLATFORM = Struct({"os": TEXT, "architecture": TEXT, "os.features": ListOf(TEXT)})
DESCRIPTOR = Struct(
    {
        "mediaType": TEXT,
        "digest": TEXT,
        "size": INTEGER,
        "urls": ListOf(TEXT),
        "annotations": MapOf(TEXT),
        "data": BASE64,
        "platform": Optional(PLATFORM),
    }
)
DOCUMENT = Struct(
    {
        "schemaVersion": INTEGER,
        "config": DESCRIPTOR,
        "layers": ListOf(DESCRIPTOR),
        "subject": Optional(DESCRIPTOR),
        "kind": TEXT,
        "gid": UINT32,
        "ok": BOOLEAN,
        "named": MapOf(PLATFORM),
        "pointers": ListOf(Optional(PLATFORM)),
        "lists": ListOf(ListOf(TEXT)),
    }
)
"""The same as in ``tests/interop/peers/gojson/main.go``."""

AT_ONCE = 2000


class Author:
    """Writes documents."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def document(self) -> bytes:
        one = self._random
        text = self._value(0, DOCUMENT if one.random() < 0.95 else None)
        if one.random() < 0.1:
            text = one.choice([" ", "\n", "\ufeff", "x", ""]) + text + one.choice([" ", "\n", "x", "{}", "]", ""])
        if one.random() < 0.01:
            levels = one.choice([50, 120, 500, 9997, 9998, 9999, 10000])
            inner = (
                "[" * levels + self._string() + "]" * levels
                if one.random() < 0.5
                else '{"a":' * levels + "1" + "}" * levels
            )
            text = f'{{"x":{inner},"kind":"deep"}}'
        data = text.encode()
        chance = one.random()
        if chance < 0.15:
            for _ in range(one.randrange(1, 3)):
                at = one.randrange(len(data) + 1)
                piece = one.choice(
                    [
                        b"\xff",
                        b"\xe2\x82",
                        b"\xed\xa0\x80",
                        b"\xf0\x9f\x98",
                        b'"',
                        b"\\",
                        b"\xc0\xaf",
                        b"\xf4\x90\x80\x80",
                        b",",
                        b"}",
                        b"]",
                    ]
                )
                data = data[:at] + piece + data[at + one.randrange(2) :]
        elif chance < 0.2:
            data = data[: one.randrange(len(data) + 1)]
        return data

    def _value(self, depth: int, shape: Shape | None = None) -> str:
        one = self._random
        if one.random() < 0.12:
            return "null"
        if isinstance(shape, Optional):
            shape = shape.value
        if shape is not None and one.random() < 0.93:
            return self._fitting(depth, shape)
        chance = one.random()
        if depth > 6 or chance < 0.3:
            return self._number()
        if chance < 0.5:
            return self._string()
        if chance < 0.6:
            return one.choice(["true", "false", "null", "tru", "nul", "True"])
        return (
            f"[{','.join(self._value(depth + 1) for _ in range(one.randrange(4)))}]"
            if chance < 0.8
            else self._object(depth, PLATFORM)
        )

    def _fitting(self, depth: int, shape: Shape) -> str:
        one, space = self._random, self._space
        if isinstance(shape, Struct):
            return self._object(depth, shape)
        if isinstance(shape, ListOf):
            return f"[{space()}{f'{space()},{space()}'.join(self._value(depth + 1, shape.element) for _ in range(one.randrange(4)))}{space()}]"
        if isinstance(shape, MapOf):
            return (
                "{"
                + ",".join(
                    f'"{one.choice("aAbk")}":{self._value(depth + 1, shape.element)}' for _ in range(one.randrange(4))
                )
                + "}"
            )
        if shape is BASE64:
            return one.choice(['"QQ=="', '"QUI="', self._string(), "[1,2,255]", "[256]", "[null,3]", "[]"])
        if shape is BOOLEAN:
            return one.choice(["true", "false"])
        if shape is TEXT:
            return self._string() if one.random() < 0.3 else one.choice(['"a"', '"b"', '""'])
        return self._number() if one.random() < 0.2 else str(one.randrange(100))

    def _object(self, depth: int, shape: Struct) -> str:
        one, space = self._random, self._space
        pairs = []
        for _ in range(one.randrange(6)):
            name = one.choice(
                [*shape.fields]
                if one.random() < 0.9
                else [
                    "x",
                    "",
                    "\u017fize",
                    "\u212aind",
                    "o\u212a",
                    "annotation\u017f",
                    "\u0130nd",
                    "di\ufb00",
                    "\\u006fs",
                    "si\\u007ae",
                    "gId",
                ]
            )
            spelt = name if "\\" in name or one.random() < 0.8 else "".join(one.choice((c.upper(), c)) for c in name)
            pairs.append(
                f'{space()}"{spelt}"{space()}:{space()}{self._value(depth + 1, shape.fields.get(name))}{space()}'
            )
        return f"{{{','.join(pairs)}}}"

    def _string(self) -> str:
        pieces = [
            "\\ud800",
            "\\uDC00",
            "\\ud83d\\ude00",
            "\\\\",
            '\\"',
            "\\n",
            "\\u0041",
            "\\/",
            "a",
            "\\uD800\\ud800\\udc00",
            "\\ud800x",
            "\\\\ud800",
            "\\u12G4",
            "\\x",
            "\n",
            "\x7f",
            "\x01",
            "\t",
            "NaN",
            "[",
            "{",
            "]",
            "é",
            "\u2028",
            "QUI=",
            "QR==",
            "QU\\nI=",
        ]
        return f'"{"".join(self._random.choice(pieces) for _ in range(self._random.randrange(4)))}"'

    def _number(self) -> str:
        return self._random.choice(
            [
                "0",
                "1",
                "-1",
                "1.0",
                "1e3",
                "9223372036854775807",
                "9223372036854775808",
                "-9223372036854775808",
                "-9223372036854775809",
                "4294967295",
                "4294967296",
                "01",
                "1.",
                "-",
                ".5",
                "+1",
                "NaN",
                "Infinity",
                "-Infinity",
                "1e",
                "9" * 50,
                "0.1",
                "1_0",
                "0x1",
                "\u0661",
                "12",
            ]
        )

    def _space(self) -> str:
        return self._random.choice([" ", "\n", "\t\r", "\x0b", "\ufeff"]) if self._random.random() < 0.03 else ""


def whole(shape: Shape, value: Any) -> Any:
    """Return the read document as Go writes it, including absent fields."""
    if isinstance(shape, Struct):
        return {name: whole(each, (value or {}).get(name)) for name, each in shape.fields.items()}
    if isinstance(shape, Optional):
        return None if value is None else whole(shape.value, value)
    if isinstance(shape, ListOf):
        return None if value is None else [whole(shape.element, each) for each in value]
    if isinstance(shape, MapOf):
        return None if value is None else {name: whole(shape.element, each) for name, each in value.items()}
    if shape is BASE64:
        return None if value is None else base64.b64encode(value).decode()
    return shape.take(value, None)


def seeds() -> Iterator[int]:
    """Two seeds; under ``make fuzz`` as many as a tenth of its time allows."""
    seed = int(os.environ.get("FUZZ_SEED") or 20261129)
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS") or 0) / 10
    yield from (seed, seed + 1)
    while time.monotonic() < end:
        seed += 2
        yield seed


def test_go_makes_the_same_of_random_documents() -> None:
    """Both scanners are asked."""
    for turn, seed in enumerate(seeds()):
        shallow = gojson.SHALLOW * (1 - turn % 2)
        author = Author(seed)
        documents = [(author.document(), number % 5 == 0) for number in range(AT_ONCE)]
        asked = b"".join(base64.b64encode(b"%d%b" % (first, data)) + b"\n" for data, first in documents)
        answers = subprocess.run(
            [go_program("gojson")], input=asked, stdout=subprocess.PIPE, check=True
        ).stdout.splitlines()
        refused = 0
        for (data, first), answer in zip(documents, answers, strict=True):
            try:
                found = whole(DOCUMENT, gojson.read(data, DOCUMENT, first=first, shallow=shallow))
            except Malformed as error:
                assert answer.startswith(b"E "), f"seed {seed}: {data!r}: {error}; Go reads it"
                refused += 1
                continue
            assert not answer.startswith(b"E "), f"seed {seed}: {data!r}: Go says {answer!r}"
            assert found == json.loads(answer), f"seed {seed}: {data!r}"
        assert AT_ONCE // 5 < refused < AT_ONCE * 4 // 5
