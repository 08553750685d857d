#!/usr/bin/env bash
# google-re2 1.1.20251105 (PyPI) and Go 1.26's regexp, which says that its syntax is RE2's.
# A good guess: what one takes, the other takes.
# What they do: RE2 takes \C (one byte), Go does not; Go 1.26 takes long names of Unicode categories, ASCII, and names in any case, RE2 does not.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install google-re2==1.1.20251105 2>/dev/null
cat >patterns <<'PATTERNS'
\C
\p{Letter}
\p{ASCII}
\p{greek}
\p{Greek}
PATTERNS
cat >tries.py <<'PYTHON'
import re2

options = re2.Options()
options.log_errors = False
for line in open("patterns"):
    try:
        re2.compile(line.rstrip("\n"), options)
        print("taken")
    except re2.error:
        print("refused")
PYTHON
cat >tries.go <<'GO'
package main

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
)

func main() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if _, err := regexp.Compile(lines.Text()); err != nil {
			fmt.Println("refused")
		} else {
			fmt.Println("taken")
		}
	}
}
GO
paste -d' ' patterns <(v/bin/python tries.py) <(go run tries.go <patterns) | tee seen
diff seen - <<'SEEN'
\C taken refused
\p{Letter} refused taken
\p{ASCII} refused taken
\p{greek} refused taken
\p{Greek} taken taken
SEEN
