#!/usr/bin/env bash
# Extended attributes whose names have % or = in an archive: bsdtar (libarchive 3.6.2 of Debian 12), GNU tar 1.34, Go 1.26's archive/tar.
# A good guess: each writes the name so that it reads it again; the three agree.
# What they do: bsdtar, and GNU tar too, write user.a%b as SCHILY.xattr.user.a%25b. GNU tar decodes it. bsdtar writes it a second time, as LIBARCHIVE.xattr, decodes only
# that one, and so makes two attributes of one out of its own archive. Go decodes neither, and writes no header at all for a name with "=".
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download libarchive-tools=3.6.2-1+deb12u5 && dpkg -x libarchive-tools_*.deb .
cat >tar.go <<'GO'
package main

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
)

func main() {
	header, err := tar.NewReader(os.Stdin).Next()
	if err != nil {
		panic(err)
	}
	var names []string
	for key := range header.PAXRecords {
		if name, found := strings.CutPrefix(key, "SCHILY.xattr."); found {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	fmt.Println("Go reads of it:", names)
	header.PAXRecords = map[string]string{"SCHILY.xattr.user.a=b": "value"}
	if tar.NewWriter(io.Discard).WriteHeader(header) != nil {
		fmt.Println("Go writes user.a=b: error")
	}
}
GO
names() { python3 -c 'import os, sys; print(sorted(n for n in os.listxattr(sys.argv[1]) if n.startswith("user.")))' "$1"; }
touch file
python3 -c 'import os; os.setxattr("file", "user.a%b", b"value")'
mkdir gnu bsd
usr/bin/bsdtar --xattrs -cf archive.tar file
{
  tar --xattrs --xattrs-include='*' -C gnu -xf archive.tar 2>/dev/null
  echo "GNU tar of bsdtar's archive: $(names gnu/file)"
  usr/bin/bsdtar --xattrs -C bsd -xf archive.tar
  echo "bsdtar of its own archive: $(names bsd/file)"
  go run tar.go <archive.tar
} | tee seen
diff seen - <<'SEEN'
GNU tar of bsdtar's archive: ['user.a%b']
bsdtar of its own archive: ['user.a%25b', 'user.a%b']
Go reads of it: [user.a%25b]
Go writes user.a=b: error
SEEN
