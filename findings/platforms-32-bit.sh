#!/usr/bin/env bash
# containerd's platforms v1.0.0-rc.1 for Go: Only, by which a pull chooses the manifest of an index.
# A good guess: linux/amd64 takes only images for amd64, and linux/arm64 only those for arm64.
# What it does: it also takes what the processor may run besides: 386 for amd64, and 32-bit arm down to v5 for arm64. A host that has no other choice pulls those. It does not take
# amd64/v2. OnlyStrict takes none of these.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT
cat >main.go <<'GO'
package main

import (
	"fmt"

	"github.com/containerd/platforms"
)

func main() {
	for _, wanted := range []string{"linux/amd64", "linux/arm64"} {
		host := platforms.MustParse(wanted)
		for name, matcher := range map[string]platforms.Matcher{"Only": platforms.Only(host), "OnlyStrict": platforms.OnlyStrict(host)} {
			fmt.Print(name, " ", wanted, ":")
			for _, offered := range []string{"linux/amd64", "linux/amd64/v2", "linux/386", "linux/arm64", "linux/arm/v7", "linux/arm/v5"} {
				if matcher.Match(platforms.MustParse(offered)) {
					fmt.Print(" ", offered)
				}
			}
			fmt.Println()
		}
	}
}
GO
cat >go.mod <<'MOD'
module example.test/finding

go 1.21

require github.com/containerd/platforms v1.0.0-rc.1
MOD
export GOFLAGS=-modcacherw
go mod tidy >/dev/null 2>&1
go run . | sort | tee seen
diff seen - <<'SEEN'
Only linux/amd64: linux/amd64 linux/386
Only linux/arm64: linux/arm64 linux/arm/v7 linux/arm/v5
OnlyStrict linux/amd64: linux/amd64
OnlyStrict linux/arm64: linux/arm64
SEEN
