//go:build peers

// Package peers names the programs that the interop tests talk to, so that go.mod pins them and go.sum has the hashes of all that they are made of.
// Go 1.19, which is Debian 12's, builds them: grpc 1.64 is the last that it can. Of h2spec later versions exist, but not as a module.
package peers

import (
	_ "github.com/summerwind/h2spec/cmd/h2spec"
	_ "google.golang.org/grpc/interop/client"
	_ "google.golang.org/grpc/interop/server"
)
