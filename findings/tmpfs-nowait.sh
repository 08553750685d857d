#!/usr/bin/env bash
# A read with RWF_NOWAIT (preadv2(2): do not wait for storage) on tmpfs and on ext4, Linux 6.18 and Python 3.11.
# A good guess: it always succeeds on tmpfs, which has the bytes in memory.
# What it does: tmpfs refuses it with EOPNOTSUPP, each time. So who tries RWF_NOWAIT first and gives the rest to a thread is slowest where there is no storage to wait for.
set -euo pipefail
work=$(mktemp -d -p /var/tmp); shm=$(mktemp -d -p /dev/shm); cd "$work"
trap 'rm -rf "$work" "$shm"' EXIT

python3 - "$shm" "$work" <<'PYTHON' | tee seen
import errno, os, sys

for directory in sys.argv[1:]:
    with open(f"{directory}/file", "w+b", buffering=0) as file:
        file.write(b"hello")
        read = bytearray(5)
        print("plain:", os.preadv(file.fileno(), [read], 0), end=" ")
        try:
            print("nowait:", os.preadv(file.fileno(), [read], 0, os.RWF_NOWAIT))
        except OSError as error:
            print("nowait:", os.strerror(error.errno))
PYTHON
diff seen - <<'SEEN'
plain: 5 nowait: Operation not supported
plain: 5 nowait: 5
SEEN
