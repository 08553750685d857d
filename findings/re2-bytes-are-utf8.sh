#!/usr/bin/env bash
# google-re2 1.1.20251105 (PyPI), which is to be used like Python's re.
# A good guess: a pattern of bytes matches bytes, and refuses a str, as re does it; search(text, pos, endpos) looks at the part as if it were the whole.
# What it does: bytes are UTF-8 unless Options say Latin-1. So `.` is the two bytes of é, it never matches a byte 0xff, and b"\xff" is no pattern at all; a bytes pattern
# takes a str. `$` does not match at endpos; a match has no `regs`.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install google-re2==1.1.20251105 2>/dev/null
v/bin/python - 2>/dev/null <<'PYTHON' | tee seen
import re
import re2

questions = {
    "two bytes of UTF-8": lambda module: len(module.findall(b".", "é".encode())),
    "a byte that is not UTF-8": lambda module: bool(module.search(b"a.b", b"a\xffb")),
    "that byte as pattern": lambda module: bool(module.search(b"\xff", b"a\xffb")),
    "bytes in a str": lambda module: bool(module.search(b"a", "a")),
    "$ at endpos": lambda module: bool(module.compile("a$").search("ab", 0, 1)),
    "regs": lambda module: module.search("a", "a").regs,
}


def answer(question, module):
    try:
        return question(module)
    except (re2.error, TypeError, AttributeError) as error:
        return type(error).__name__


for name, question in questions.items():
    print(f"{name}: re {answer(question, re)}, re2 {answer(question, re2)}")
PYTHON
diff seen - <<'SEEN'
two bytes of UTF-8: re 2, re2 1
a byte that is not UTF-8: re True, re2 False
that byte as pattern: re True, re2 Error
bytes in a str: re TypeError, re2 True
$ at endpos: re True, re2 False
regs: re ((0, 1),), re2 AttributeError
SEEN
