//go:build peers

// Package crane pins go-containerregistry's program, which is a registry and a client of registries. Go 1.19, which is Debian 12's, builds this version.
package crane

import _ "github.com/google/go-containerregistry/cmd/crane"
