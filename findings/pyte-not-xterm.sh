#!/usr/bin/env bash
# pyte 0.8.2, a terminal in Python, as tests use it to look at a program's screen.
# A good guess: what it does not know it passes over, and what it knows it does as xterm does.
# What it does: `CSI 3 J` (forget what has scrolled away) clears the screen; REP and SU do nothing; the alternate screen is the same screen;
# the inside of a DCS string, and of a colour written with colons, is printed.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install pyte==0.8.2 2>/dev/null
v/bin/python - <<'PYTHON' | tee seen
import pyte


def shown(name, text):
    screen = pyte.Screen(20, 2)
    pyte.Stream(screen).feed(text)
    print(name, [line.rstrip() for line in screen.display])


shown("erase scrollback:", "kept\x1b[3J")
shown("repeat 3 times:", "a\x1b[3b")
shown("scroll up:", "a\r\nb\x1b[1S")
shown("alternate screen:", "main\x1b[?1049h other\x1b[?1049l")
shown("device control:", "\x1bPq\x1b\\a")
shown("colour with colons:", "\x1b[38:2:1:2:3ma")
PYTHON
diff seen - <<'SEEN'
erase scrollback: ['', '']
repeat 3 times: ['a', '']
scroll up: ['a', 'b']
alternate screen: ['main other', '']
device control: ['qa', '']
colour with colons: ['2:1:2:3ma', '']
SEEN
