#!/usr/bin/env bash
# distribution/reference v0.6.0 (containerd, docker, podman read names with it), go-containerregistry v0.21.9 and oras-go v2.7.0, in Go.
# A good guess: MyOrg/application is refused, since names have small letters; what is no valid name by the distribution specification is refused by all.
# What they do: for reference and oras-go MyOrg/application is the repository "application" of the host "MyOrg"; go-containerregistry refuses it. In my_host.example/application reference finds
# no host at all, and no error, where the others find the host. go-containerregistry accepts a name with an empty part, at the end and in the middle.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

export GOFLAGS=-modcacherw
cat >go.mod <<'MOD'
module finding

go 1.25

require (
	github.com/distribution/reference v0.6.0
	github.com/google/go-containerregistry v0.21.9
	oras.land/oras-go/v2 v2.7.0
)
MOD
cat >main.go <<'GO'
package main

import (
	"fmt"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	"oras.land/oras-go/v2/registry"
)

func say(what string, err error, host, repository string) {
	if err != nil {
		fmt.Printf("  %s: refused\n", what)
	} else {
		fmt.Printf("  %s: host %q, repository %q\n", what, host, repository)
	}
}

func main() {
	for _, text := range []string{"host.example/team/application", "MyOrg/application", "my_host.example/application", "host.example/team/", "host.example//application"} {
		fmt.Println(text)
		named, err := reference.ParseNormalizedNamed(text)
		if err == nil {
			say("reference", nil, reference.Domain(named), reference.Path(named))
		} else {
			say("reference", err, "", "")
		}
		parsed, err := name.ParseReference(text)
		if err == nil {
			say("go-containerregistry", nil, parsed.Context().RegistryStr(), parsed.Context().RepositoryStr())
		} else {
			say("go-containerregistry", err, "", "")
		}
		of, err := registry.ParseReference(text)
		say("oras-go", err, of.Registry, of.Repository)
	}
}
GO
go mod tidy 2>/dev/null
go run . | tee seen
diff seen - <<'SEEN'
host.example/team/application
  reference: host "host.example", repository "team/application"
  go-containerregistry: host "host.example", repository "team/application"
  oras-go: host "host.example", repository "team/application"
MyOrg/application
  reference: host "MyOrg", repository "application"
  go-containerregistry: refused
  oras-go: host "MyOrg", repository "application"
my_host.example/application
  reference: host "", repository "my_host.example/application"
  go-containerregistry: host "my_host.example", repository "application"
  oras-go: host "my_host.example", repository "application"
host.example/team/
  reference: refused
  go-containerregistry: host "host.example", repository "team/"
  oras-go: refused
host.example//application
  reference: refused
  go-containerregistry: host "host.example", repository "/application"
  oras-go: refused
SEEN
