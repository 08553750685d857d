#!/usr/bin/env bash
# oras-go v2.7.0: an OCI layout (content/oci) with an image, and a signature whose subject is the image, which has a tag of its own. Then Delete of the image.
# A good guess: what has a tag stays, as in a registry, where an image can be deleted without its referrers.
# What it does: it removes the referrer too, with its tag, without a word; Tags lists none.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

export GOFLAGS=-modcacherw
printf 'module finding\n\ngo 1.25\n\nrequire oras.land/oras-go/v2 v2.7.0\n' >go.mod
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	ctx := context.Background()
	store, err := oci.New("layout")
	must(err)
	image, err := oras.PackManifest(ctx, store, oras.PackManifestVersion1_1, "application/x.image", oras.PackManifestOptions{})
	must(err)
	signature, err := oras.PackManifest(ctx, store, oras.PackManifestVersion1_1, "application/x.signature", oras.PackManifestOptions{Subject: &image})
	must(err)
	must(store.Tag(ctx, image, "image"))
	must(store.Tag(ctx, signature, "signature"))
	say := func(when string) {
		for _, each := range []struct {
			name string
			what v1.Descriptor
		}{{"image", image}, {"signature", signature}} {
			exists, err := store.Exists(ctx, each.what)
			must(err)
			_, err = store.Resolve(ctx, each.name)
			fmt.Printf("%s: %s exists: %t, has a tag: %t\n", when, each.name, exists, err == nil)
		}
	}
	say("before")
	must(store.Delete(ctx, image))
	say("image deleted")
}
GO
go mod tidy 2>/dev/null
go run . | tee seen
diff seen - <<'SEEN'
before: image exists: true, has a tag: true
before: signature exists: true, has a tag: true
image deleted: image exists: false, has a tag: false
image deleted: signature exists: false, has a tag: false
SEEN
