#!/usr/bin/env bash
# zstandard 0.25.0 (PyPI): two frames one after the other, and a skippable frame before a frame. Both are valid (RFC 8878, 3.1); zstd:chunked layers and seekable files are made so.
# A good guess: one default holds for the whole library, either the first frame or all of them; what is skippable is skipped.
# What it does: stream_reader and copy_stream read all frames, decompress, read_to_iter and decompressobj the first alone. Before a skippable frame decompress takes the
# size of what is to be skipped for the size of the content, and fails; read_to_iter and decompressobj say that there is nothing.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install zstandard==0.25.0 2>/dev/null
v/bin/python - <<'PYTHON' | tee seen
import io
import zstandard

decompressor = zstandard.ZstdDecompressor()


def copied(data):
    to = io.BytesIO()
    decompressor.copy_stream(io.BytesIO(data), to)
    return to.getvalue()


two = zstandard.compress(b"one ") + zstandard.compress(b"two")
skippable = bytes.fromhex("502a4d18 03000000") + b"abc" + zstandard.compress(b"content")
ways = {
    "stream_reader": lambda data: decompressor.stream_reader(io.BytesIO(data)).read(),
    "copy_stream": copied,
    "decompress": decompressor.decompress,
    "read_to_iter": lambda data: b"".join(decompressor.read_to_iter(io.BytesIO(data))),
    "decompressobj": lambda data: decompressor.decompressobj().decompress(data),
}
for name, way in ways.items():
    for data in (two, skippable):
        try:
            print(f"{name}:", way(data))
        except zstandard.ZstdError as error:
            print(f"{name}: {error}")
PYTHON
diff seen - <<'SEEN'
stream_reader: b'one two'
stream_reader: b'content'
copy_stream: b'one two'
copy_stream: b'content'
decompress: b'one '
decompress: decompression error: decompressed 0 bytes; expected 3
read_to_iter: b'one '
read_to_iter: b''
decompressobj: b'one '
decompressobj: b''
SEEN
