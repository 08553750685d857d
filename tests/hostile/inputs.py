"""Inputs of a hostile client, registry or image: at each limit, beyond it, and nearly valid.

Each function makes one input from a seeded generator, and a name that describes it. No input is larger than a few
megabytes, and none aims at other software: they test the node's own limits.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Mapping
from typing import Any

import zstandard

from deploy.samples import Image, image, tar_of
from services.kit import regexp
from services.oci.digests import digest_of
from services.oci.media_types import CONFIG, INDEX, LAYER, MANIFEST

Rng = random.Random
Named = tuple[str, bytes]

NUMBERS: tuple[Any, ...] = (
    -1,
    0,
    1,
    (1 << 31) - 1,
    1 << 31,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    1 << 64,
    10**400,
    1.0,
    1.5,
    "1",
    None,
    True,
    [],
    {},
)
WORDS: tuple[Any, ...] = (
    "",
    "x" * 70_000,
    "\ud800",
    "\x00",
    "\x1b[2J\n",
    "../../etc",
    "sha256:",
    "sha256:" + "g" * 64,
    "sha256:" + "a" * 63,
    "sha512:" + "a" * 64,
    7,
    None,
    [],
    {},
)
DEPTHS = (100, 999, 1000, 3000, 9_999, 10_001, 100_000)
COUNTS = (0, 1, 100, 499, 500, 501, 4000, 10_001)


def descriptor(rng: Rng, media_type: str = LAYER) -> dict[str, Any]:
    """A descriptor that is valid, or has one invalid field."""
    found: dict[str, Any] = {
        "mediaType": media_type,
        "digest": digest_of(rng.randbytes(8)),
        "size": rng.choice((1, 1000, 1 << 20)),
    }
    match rng.randrange(6):
        case 0:
            found["size"] = rng.choice(NUMBERS)
        case 1:
            found["digest"] = rng.choice(WORDS)
        case 2:
            found["mediaType"] = rng.choice(WORDS)
        case 3:
            found["annotations"] = {str(rng.choice(WORDS))[:5000]: rng.choice(WORDS) for _ in range(rng.randrange(20))}
        case 4:
            del found[rng.choice(list(found))]
    return found


def _many(rng: Rng, media_type: str, count: int) -> list[dict[str, Any]]:
    """Make so many, one of which may be invalid."""
    found = [{"mediaType": media_type, "digest": digest_of(b"%d" % n), "size": 1000} for n in range(count)]
    if found:
        found[rng.randrange(count)] = descriptor(rng, media_type)
    return found


def document(rng: Rng) -> tuple[str, str, bytes]:
    """Return a name, a media type, and a manifest or index (or a document that is neither)."""
    media_type = rng.choice(
        (
            MANIFEST,
            MANIFEST,
            INDEX,
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/json",
            "text/html",
        )
    )
    count = rng.choice(COUNTS)
    if media_type == INDEX:
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": _many(rng, rng.choice((MANIFEST, INDEX)), count),
        }
    else:
        value = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": descriptor(rng, CONFIG),
            "layers": _many(rng, LAYER, count),
        }
    name, data = spoilt(rng, value)
    return f"{media_type.rpartition('.')[2][:20]} of {count}, {name}", media_type, data


def config(rng: Rng, layers: int) -> Named:
    """An image's configuration."""
    return spoilt(
        rng,
        {
            "architecture": "amd64",
            "os": rng.choice(("linux", "", 7)),
            "config": {"Env": ["A=b"] * rng.choice(COUNTS)},
            rng.choice(("rootfs", "RootFS", "rootFS")): {
                "type": "layers",
                "diff_ids": [digest_of(b"%d" % n) for n in range(rng.choice((layers, 0, 501)))],
            },
        },
    )


def token(rng: Rng) -> Named:
    """A token server's answer."""
    return spoilt(
        rng,
        {
            rng.choice(("token", "access_token", "Token")): rng.choice(WORDS),
            "expires_in": rng.choice(NUMBERS),
            "issued_at": rng.choice(WORDS),
        },
    )


def spoilt(rng: Rng, value: Mapping[str, Any]) -> Named:
    """Return ``value`` as JSON that is valid, at a limit, or beyond it."""
    text = json.dumps(value).encode()
    match rng.randrange(14):
        case 0:
            depth = rng.choice(DEPTHS)
            return f"arrays {depth} deep", text[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"
        case 1:
            depth = rng.choice(DEPTHS)
            return f"objects {depth} deep", text[:-1] + b',"x":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
        case 2:
            return "cut short", text[: rng.randrange(len(text))]
        case 3:
            return "a BOM", b"\xef\xbb\xbf" + text
        case 4:
            return "no UTF-8", text.replace(b"a", rng.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80")), 3)
        case 5:
            size = rng.choice((1 << 20, (4 << 20) - len(text), (8 << 20) - len(text), 9 << 20))
            return f"{size} blanks", text + b" " * size
        case 6:
            return "a number that is none", text[:-1] + b',"size":' + rng.choice(
                (b"NaN", b"Infinity", b"-", b"01", b"1e999", b"9" * 5000)
            ) + b"}"
        case 7:
            return "names twice", text[:-1] + b"," + text[1:]
        case 8:
            return "a page", b"<!DOCTYPE html><html><body>" + b"moved " * rng.randrange(5000) + b"</body></html>"
        case 9:
            return "many fields", text[:-1] + b"," + b",".join(b'"f%d":%d' % (n, n) for n in range(20_000)) + b"}"
        case 10:
            return "another value", rng.choice((b"null", b"[]", b'""', b"7", b"", b"{}", b"\x00" * 100))
        case 11:
            at = rng.randrange(len(text))
            return "a byte is another", text[:at] + rng.randbytes(1) + text[at + 1 :]
        case _:
            return "as it is", text


# ---------------------------------------------------------------------------------------------- archives and layers


def tar(rng: Rng) -> Named:
    """Return a tar of some files with one defect."""
    size = rng.choice((1 << 10, 1 << 19, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 8 << 20))
    match rng.randrange(9):
        case 0:
            return f"a long name of {size}", _raw(b"././@LongLink", size, b"L") + bytes(size + -size % 512) + tar_of(
                [("f", {"data": b"x"})]
            )
        case 1:
            return f"a PAX header of {size}", _raw(b"PaxHeader", size, b"x") + bytes(size + -size % 512) + tar_of(
                [("f", {"data": b"x"})]
            )
        case 2:
            name = "/".join("d" * rng.choice((1, 100, 255)) for _ in range(rng.choice((10, 500, 3000))))
            return f"a path of {len(name)}", tar_of([(name, {"data": b"x"})])
        case 3:
            return "many names", tar_of([(f"d{n % 10}/f{n}", {"data": b""}) for n in range(2000)])
        case 4:
            return "whiteouts", tar_of(
                [
                    ("d/f", {"data": b"x"}),
                    *[("d/.wh..wh..opq", {"data": b""})] * 500,
                    ("d/.wh.", {"data": b""}),
                    (".wh..", {"data": b""}),
                ]
            )
        case 5:
            return "links", tar_of(
                [
                    ("a", {"type": tarfile.SYMTYPE, "link": "a"}),
                    ("a/b", {"data": b"x"}),
                    ("c", {"type": tarfile.LNKTYPE, "link": "../../x"}),
                    *[(f"l{n}", {"type": tarfile.SYMTYPE, "link": f"l{n + 1}"}) for n in range(60)],
                    ("l0/x", {"data": b""}),
                ]
            )
        case 6:
            found = bytearray(tar_of([(f"f{n}", {"data": rng.randbytes(600)}) for n in range(5)]))
            for _ in range(rng.randrange(1, 30)):
                found[rng.randrange(len(found))] = rng.randrange(256)
            return "bytes are others", bytes(found)
        case 7:
            found = bytearray(tar_of([("f", {"data": rng.randbytes(6000)})]))
            return "cut short", bytes(found[: rng.randrange(len(found))])
        case _:
            return "as it is", tar_of([("f", {"data": rng.randbytes(5000)}), ("d", {"type": tarfile.DIRTYPE})])


def _raw(name: bytes, size: int, kind: bytes) -> bytes:
    """Return a header with the given size, in the old format or in GNU's."""
    header = bytearray(512)
    header[: len(name)] = name
    header[100:108], header[108:116], header[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    header[124:136] = b"%011o\0" % size
    header[136:148], header[156:157], header[257:265] = b"00000000000\0", kind, b"ustar\x0000"
    header[148:156] = b"%06o\0 " % (sum(header) + 8 * 32)
    return bytes(header)


def compressed(rng: Rng, data: bytes) -> Named:
    """Return the bytes unchanged, as gzip, truncated, with bytes after the end, or with a member for each few bytes."""
    match rng.randrange(6):
        case 0:
            return "plain", data
        case 1:
            packed = gzip.compress(data, 1, mtime=0)
            return "gzip cut short", packed[: rng.randrange(len(packed))]
        case 2:
            return "gzip and more", gzip.compress(data, 1, mtime=0) + rng.randbytes(100)
        case 3:
            return "members", b"".join(
                gzip.compress(data[n : n + 1000], 1, mtime=0) for n in range(0, min(len(data), 300_000), 1000)
            )
        case _:
            return "gzip", gzip.compress(data, 1, mtime=0)


def encoding(rng: Rng) -> tuple[str, Callable[[bytes], bytes]]:
    """Return a Content-Encoding, and a function that encodes a body so, or not."""
    return rng.choice(
        (
            ("gzip", lambda data: gzip.compress(data, 1)),
            ("zstd", zstandard.compress),
            ("gzip, zstd", lambda data: zstandard.compress(gzip.compress(data, 1))),
            ("gzip", lambda data: gzip.compress(data, 1)[:-5]),
            ("gzip", lambda _: gzip.compress(bytes(32 << 20), 1)),
            ("zstd", lambda _: zstandard.compress(bytes(32 << 20))),
            ("gzip", lambda _: gzip.compress(b"", 1) * 100_000),
            ("deflate", lambda data: data + b"more"),
            ("br", lambda data: data + b"more"),
        )
    )


def layered(rng: Rng) -> tuple[str, Image]:
    """Return an image whose layers are damaged, and whose documents match them."""
    names, tars = zip(*(tar(rng) for _ in range(rng.randrange(1, 4))), strict=True)
    return " and ".join(names), image(list(tars))


def archive(rng: Rng) -> Named:
    """Return an OCI archive of an image, one part of which is damaged."""
    inner, found = layered(rng)
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{**found.descriptor, "annotations": {"org.opencontainers.image.ref.name": "1"}}],
    }
    name, data = spoilt(rng, index)
    layout = json.dumps({"imageLayoutVersion": "1.0.0"}).encode()
    entries = [
        ("oci-layout", {"data": layout}),
        ("index.json", {"data": data}),
        *((f"blobs/sha256/{digest.partition(':')[2]}", {"data": blob}) for digest, blob in found.blobs.items()),
    ]
    rng.shuffle(entries)
    how, packed = compressed(rng, tar_of(entries))
    if rng.random() < 0.2:
        odd, other = tar(rng)
        return f"{how} of {odd}", compressed(rng, other)[1]
    return f"{how}, index {name}, layers {inner}", packed


def nested(rng: Rng) -> tuple[str, dict[str, bytes], bytes]:
    """Return indexes in indexes: the documents by digest, and the outermost."""
    depth = rng.choice((2, 20, 64, 300))
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
    found = {}
    for _ in range(depth):
        found[digest_of(data)] = data
        entry = {"mediaType": INDEX, "digest": digest_of(data), "size": len(data)}
        data = json.dumps(
            {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] * rng.choice((1, 1, 2))}
        ).encode()
    return f"indexes {depth} deep", found, data


# ---------------------------------------------------------------------------------------------- filters, headers,
# specs, frames

_EXPRESSIONS: tuple[Callable[[Rng], str], ...] = (
    lambda rng: "(a+)+$",
    lambda rng: "(a|a)*b",
    lambda rng: f"(a|b)*a(a|b){{{rng.choice((10, 100, 1000))}}}c",
    lambda rng: "(" * rng.choice((10, 999, 1000)) + ")" * 999,
    lambda rng: r"\pL" * rng.choice((1, regexp.CLASSES, regexp.CLASSES + 1)),
    lambda rng: "x{1000}" * rng.randrange(1, 40),
    lambda rng: ".*" * rng.choice((10, 4000)),
    lambda rng: "((a{100}){10}){1}" * rng.randrange(1, 40),
    lambda rng: "[a-",
    lambda rng: r"\C",
    lambda rng: "a" * (regexp.EXPRESSION + rng.choice((0, 1))),
)


def filters(rng: Rng) -> tuple[str, list[str]]:
    """Filters of a List or a Subscribe."""
    field = rng.choice(("name", "labels.l", "event.name", 'labels."a.b"', "topic", "id", "target.digest"))
    match rng.randrange(8):
        case 0:
            return "many", [f"{field}==x{n}" for n in range(rng.choice((100, 2048, 2049, 20_000)))]
        case 1:
            return "long", [f"{field}==" + "x" * rng.choice((30_000, 40_000, 4_000_000))]
        case 2:
            return "many selectors", [",".join([field] * rng.choice((100, 2048, 3000)))]
        case 3:
            return "a long path", ["labels" + ".a" * rng.choice((100, 16_000))]
        case 4:
            return "quoted", [f'{field}=="' + r"\x41\n" * rng.choice((10, 5000)) + rng.choice(('"', "", "\\", "\0"))]
        case _:
            made = rng.choice(_EXPRESSIONS)(rng)
            return f"expression {made[:30]}", [f"{field}~={json.dumps(made)}"] * rng.choice((1, 1, 1, 64, 65))


def headers(rng: Rng) -> tuple[str, dict[str, str | bytes]]:
    """A call's metadata."""
    match rng.randrange(7):
        case 0:
            size = rng.choice((4000, 16_000, 60_000))
            return f"one of {size}", {"x-large": "v" * size}
        case 1:
            count = rng.choice((50, 90))
            return f"{count} of them", {f"x-{n}": "v" for n in range(count)}
        case 2:
            return "a namespace", {
                "containerd-namespace": rng.choice(("", "-", "a" * 76, "a" * 77, "a/b", "../x", "A b"))
            }
        case 3:
            return "a lease", {"containerd-lease": rng.choice(("", "none", "x" * 5000, "a b"))}
        case 4:
            return "a trace", {
                "traceparent": rng.choice(
                    ("", "00-" + "0" * 55, "ff-" + "a" * 5000, "00-" + "a" * 32 + "-" + "b" * 16 + "-01")
                ),
                "tracestate": "a=b," * 500,
            }
        case 5:
            return "bytes", {"x-bin": rng.randbytes(rng.choice((0, 1, 10_000)))}
        case _:
            return "raw", {"splitd-raw": rng.choice(("content", "overlayfs", ""))}


def spec(rng: Rng) -> Named:
    """An OCI runtime spec."""
    value = {
        "ociVersion": "1.0.2",
        "process": {"args": ["true"] * rng.choice((1, 5000)), "cwd": "/"},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/x", "options": ["ro"]}] * rng.choice((0, 500)),
        "annotations": {"a" * n: "b" for n in range(rng.choice((0, 300)))},
    }
    return spoilt(rng, value)


def labels(rng: Rng) -> dict[str, str]:
    """Labels at the limit, beyond it, and in great number."""
    size = rng.choice((1, 4000, 4095, 4096, 5000))
    return {f"l{n}": "a" * size for n in range(rng.choice((1, 1, 20, 200)))}


def frames(rng: Rng) -> Named:
    """Return bytes that follow the preface: frames that are nearly valid, or none at all."""
    out = io.BytesIO()
    for _ in range(rng.randrange(1, 40)):
        kind, flags, stream = (
            rng.randrange(12),
            rng.choice((0, 1, 4, 5, 8, 32, 255)),
            rng.choice((0, 1, 1, 3, 5, 2, (1 << 31) - 1)),
        )
        payload = rng.randbytes(rng.choice((0, 1, 4, 5, 6, 8, 9, 100, 16_384)))
        length = len(payload) if rng.random() < 0.9 else rng.choice((0, 16_385, (1 << 24) - 1))
        out.write(length.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload)
    return "frames", out.getvalue()


def blob(rng: Rng) -> tuple[bytes, str]:
    """Some bytes and their digest."""
    data = rng.randbytes(rng.choice((0, 1, 1000, 100_000, 1 << 20)))
    return data, f"sha256:{hashlib.sha256(data).hexdigest()}"
