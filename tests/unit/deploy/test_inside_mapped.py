"""supervisord lets go of what it has mapped of files."""

from __future__ import annotations

import json
import subprocess
import sys

from deploy.inside import mapped
from tests.support import TOP

SMAPS = """\
7f0000001000-7f0000003000 r--p 00000000 fe:01 100 /lib/libone.so
Rss:                   8 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me
7f0000003000-7f0000004000 r-xp 00002000 fe:01 100 /lib/a library (deleted)
Anonymous:             0 kB
Swap:                  0 kB
7f0000004000-7f0000005000 r--p 00003000 fe:01 100 /lib/libone.so
Anonymous:             4 kB
Swap:                  0 kB
7f0000005000-7f0000006000 r-xp 00003000 fe:01 100 /lib/libone.so
Anonymous:             0 kB
Swap:                  4 kB
7f0000006000-7f0000007000 rw-p 00004000 fe:01 100 /lib/libone.so
Anonymous:             0 kB
Swap:                  0 kB
7f0000007000-7f0000008000 r--s 00000000 00:01 200 /memfd:x
Anonymous:             0 kB
Swap:                  0 kB
7f0000008000-7f0000009000 r--p 00000000 00:00 0
Anonymous:             0 kB
Swap:                  0 kB
7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
Swap:                  0 kB
"""

PROGRAM = """
import json, os, re, ssl, sqlite3
from pathlib import Path
from deploy.inside import mapped

def resident():
    found = dict(re.findall(r"(\\w+): +(\\d+) kB", Path("/proc/self/smaps_rollup").read_text()))
    return int(found["Rss"]) - int(found["Anonymous"])

before = resident()
mapped.let_go()
after = resident()
import decimal, email.message, xmlrpc.client
context = ssl.create_default_context()
row = sqlite3.connect(":memory:").execute("select 1 + 1").fetchone()
print(json.dumps([before, after, str(decimal.Decimal(1) / 8), row, context.check_hostname]))
"""


def test_only_what_is_as_its_file_is_let_go() -> None:
    """Not what the linker has written to, and is read only since, even if it is swapped out; nor what is no file's, or
    shared.
    """
    assert mapped.unwritten(SMAPS) == [(0x7F0000001000, 0x7F0000003000), (0x7F0000003000, 0x7F0000004000)]


def test_a_process_lets_go_and_goes_on() -> None:
    """What it uses then is mapped again."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=TOP, check=True, capture_output=True, text=True, timeout=60
    )
    before, after, *rest = json.loads(done.stdout)
    assert after < before / 2
    assert rest == ["0.125", [2], True]
