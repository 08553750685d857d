#!/usr/bin/env bash
# containerd/cgroups v3.1.3 (cgroup2.ToResources) and opencontainers/cgroups v0.1.0, runc's: what a runtime spec's numbers, made for cgroups of version 1, become in version 2.
# A good guess: both convert alike: a block weight 10..1000 becomes 1..10000, and an unlimited swap is unlimited.
# What they do: shares they convert alike (1024, the default, becomes 100, the default). The block weight of containerd's library overflows 16 bits: 500 becomes 51, and 1000, the greatest,
# becomes 4. Its swap for "unlimited" (-1) beside a limit of 100 bytes is -101 bytes.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

export GOFLAGS=-modcacherw
cat >go.mod <<'MOD'
module finding

go 1.25

require (
	github.com/containerd/cgroups/v3 v3.1.3
	github.com/opencontainers/cgroups v0.1.0
)
MOD
cat >main.go <<'GO'
package main

import (
	"fmt"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func main() {
	for _, shares := range []uint64{2, 512, 1024, 262144} {
		converted := cgroup2.ToResources(&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}})
		fmt.Printf("shares %d: weight %d by containerd's, %d by runc's\n", shares, *converted.CPU.Weight, cgroups.ConvertCPUSharesToCgroupV2Value(shares))
	}
	for _, weight := range []uint16{10, 16, 100, 500, 1000} {
		converted := cgroup2.ToResources(&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: &weight}})
		fmt.Printf("block weight %d: %d by containerd's, %d by runc's\n", weight, converted.IO.BFQ.Weight, cgroups.ConvertBlkIOToIOWeightValue(weight))
	}
	for _, swap := range []int64{300, -1} {
		limit := int64(100)
		converted := cgroup2.ToResources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap}})
		runc, err := cgroups.ConvertMemorySwapToCgroupV2Value(swap, limit)
		fmt.Printf("memory 100, with swap %d: swap %d by containerd's, %d by runc's, %v\n", swap, *converted.Memory.Swap, runc, err)
	}
}
GO
go mod tidy 2>/dev/null
go run . | tee seen
diff seen - <<'SEEN'
shares 2: weight 1 by containerd's, 1 by runc's
shares 512: weight 59 by containerd's, 59 by runc's
shares 1024: weight 100 by containerd's, 100 by runc's
shares 262144: weight 10000 by containerd's, 10000 by runc's
block weight 10: 1 by containerd's, 1 by runc's
block weight 16: 61 by containerd's, 61 by runc's
block weight 100: 49 by containerd's, 910 by runc's
block weight 500: 51 by containerd's, 4950 by runc's
block weight 1000: 4 by containerd's, 10000 by runc's
memory 100, with swap 300: swap 200 by containerd's, 200 by runc's, <nil>
memory 100, with swap -1: swap -101 by containerd's, -1 by runc's, <nil>
SEEN
