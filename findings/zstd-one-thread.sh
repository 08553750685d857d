#!/usr/bin/env bash
# zstd 1.5.4 of Debian 12 and zstandard 0.25.0 (PyPI): the same bytes at the same level, by a number of threads.
# A good guess: one thread is the plain compressor, and makes the bytes that the default makes; more threads cut the input, and make others.
# What they do: one thread is the parallel compressor with one worker, and makes the bytes that four make. `zstd --single-thread`, and zstandard's threads=0, its default, make others. So a layer
# keeps its digest from threads=1 to threads=8, and gets another with threads=0; the command's default is not the library's.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download zstd=1.5.4+dfsg2-5+deb12u1 && dpkg -x zstd_*.deb .
python3 -m venv v && v/bin/pip -q install zstandard==0.25.0 2>/dev/null
{
  v/bin/python - <<'PYTHON'
import hashlib
import random
import zstandard

source = random.Random(1)
words = [bytes(source.randrange(97, 123) for _ in range(source.randrange(2, 9))) for _ in range(3000)]
data = b" ".join(source.choice(words) for _ in range(2_000_000))
with open("data", "wb") as file:
    file.write(data)
made = [hashlib.sha256(zstandard.ZstdCompressor(level=3, threads=threads).compress(data)).hexdigest() for threads in (0, 1, 2, 4)]
print("zstandard, threads 0, 1, 2, 4:", [made.index(digest) for digest in made])
PYTHON
  for option in --single-thread -T1 -T2 -T4; do
    usr/bin/zstd -qc $option data >made$option
  done
  for option in --single-thread -T2 -T4; do
    if cmp -s made-T1 made$option; then echo "zstd $option: as -T1"; else echo "zstd $option: not as -T1"; fi
  done
} | tee seen
diff seen - <<'SEEN'
zstandard, threads 0, 1, 2, 4: [0, 1, 1, 1]
zstd --single-thread: not as -T1
zstd -T2: as -T1
zstd -T4: as -T1
SEEN
