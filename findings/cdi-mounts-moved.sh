#!/usr/bin/env bash
# CDI's Go library (tags.cncf.io/container-device-interface v1.0.1): a device that brings one mount, injected into a runtime's spec.
# A good guess: the mount is added after the spec's own, as a variable of the environment is; they stay as they were.
# What it does: it removes the spec's mount of the same destination, and sorts all mounts by the number of parts of their destination: the spec's own change places, too, so that
# what one of them covered on purpose is now above it.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

mkdir specs
cat >specs/vendor.json <<'JSON'
{"cdiVersion": "0.5.0", "kind": "vendor.example/device", "devices": [{"name": "one", "containerEdits":
  {"mounts": [{"hostPath": "/usr/lib/vendor", "containerPath": "/data", "options": ["ro", "bind"]}]}}]}
JSON
cat >main.go <<'GO'
package main

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

func main() {
	cache, err := cdi.NewCache(cdi.WithSpecDirs("specs"), cdi.WithAutoRefresh(false))
	if err != nil {
		panic(err)
	}
	spec := &specs.Spec{Mounts: []specs.Mount{
		{Destination: "/srv/app/logs", Source: "/first"}, {Destination: "/srv", Source: "/second"}, {Destination: "/data", Source: "/third"},
	}}
	show := func(when string) {
		fmt.Print(when)
		for _, mount := range spec.Mounts {
			fmt.Print(" ", mount.Destination, "=", mount.Source)
		}
		fmt.Println()
	}
	show("before:")
	if _, err := cache.InjectDevices(spec, "vendor.example/device=one"); err != nil {
		panic(err)
	}
	show("after:")
}
GO
cat >go.mod <<'MOD'
module example.test/finding

go 1.21

require (
	github.com/opencontainers/runtime-spec v1.1.0
	tags.cncf.io/container-device-interface v1.0.1
)
MOD
export GOFLAGS=-modcacherw
go mod tidy >/dev/null 2>&1
go run . | tee seen
diff seen - <<'SEEN'
before: /srv/app/logs=/first /srv=/second /data=/third
after: /srv=/second /data=/usr/lib/vendor /srv/app/logs=/first
SEEN
