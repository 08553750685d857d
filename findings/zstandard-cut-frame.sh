#!/usr/bin/env bash
# zstandard 0.25.0 (PyPI), and zstd 1.5.4 of Debian 12: a frame of which only the first half came.
# A good guess: whoever reads it to its end gets an error, as from the command.
# What it does: only decompress() raises. stream_reader, read_to_iter, copy_stream and decompressobj hand out what they have, and then say that the end is there.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install zstandard==0.25.0 2>/dev/null
apt-get -qq -o APT::Sandbox::User=root download zstd=1.5.4+dfsg2-5+deb12u1 && dpkg -x zstd_*.deb .
v/bin/python - <<'PYTHON' | tee seen
import io
import random
import zstandard

data = random.Random(1).randbytes(300_000)
half = zstandard.compress(data)[:150_000]
with open("half.zst", "wb") as file:
    file.write(half)
decompressor = zstandard.ZstdDecompressor()
copied = io.BytesIO()
ways = {
    "decompress": lambda: decompressor.decompress(half),
    "stream_reader": lambda: decompressor.stream_reader(io.BytesIO(half)).read(),
    "read_to_iter": lambda: b"".join(decompressor.read_to_iter(io.BytesIO(half))),
    "copy_stream": lambda: decompressor.copy_stream(io.BytesIO(half), copied) and copied.getvalue(),
    "decompressobj": lambda: decompressor.decompressobj().decompress(half),
}
for name, way in ways.items():
    try:
        print(f"{name}:", "a part, and no error" if data.startswith(way()) else "other bytes")
    except zstandard.ZstdError as error:
        print(f"{name}: {error}")
PYTHON
{ usr/bin/zstd -dc half.zst 2>&1 >/dev/null || true; } | tr '\r' '\n' | grep -o 'Read error.*' | tee -a seen
diff seen - <<'SEEN'
decompress: decompression error: did not decompress full frame
stream_reader: a part, and no error
read_to_iter: a part, and no error
copy_stream: a part, and no error
decompressobj: a part, and no error
Read error (39) : premature end 
SEEN
