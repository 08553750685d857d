//go:build peers

// Package distribution pins the registry of the project distribution. It takes minutes to build, and Go 1.25.
package distribution

import _ "github.com/distribution/distribution/v3/cmd/registry"
