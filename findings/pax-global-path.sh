#!/usr/bin/env bash
# A tar with `path` and `mtime` in a pax global header: GNU tar 1.34, Python 3's tarfile, Go 1.26's archive/tar, libarchive 3.6.2.
# A good guess: POSIX says that the values hold for all members, so all readers apply them, or all ignore them.
# What they do: GNU tar and Python rename the member and give it the global time; Go hands the header out as an entry of its own and applies nothing; libarchive applies nothing.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download libarchive-tools=3.6.2-1+deb12u5 && dpkg -x libarchive-tools_*.deb .
python3 - <<'PYTHON'
import tarfile

member = tarfile.TarInfo("member")
member.mtime = 5
with open("global.tar", "wb") as file:
    file.write(tarfile.TarInfo.create_pax_global_header({"path": "renamed", "mtime": "1000"}) + member.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
PYTHON
cat >reader.go <<'GO'
package main

import (
	"archive/tar"
	"fmt"
	"os"
)

func main() {
	reader := tar.NewReader(os.Stdin)
	for header, err := reader.Next(); err == nil; header, err = reader.Next() {
		if header.Typeflag == tar.TypeReg {
			fmt.Println("Go:", header.Name, header.ModTime.Unix())
		}
	}
}
GO
{
  echo "GNU tar: $(TZ=UTC tar -tvf global.tar --full-time 2>&1 | awk '{ print $6, $5 }')"
  python3 -c 'import tarfile; [print("Python:", m.name, int(m.mtime)) for m in tarfile.open("global.tar")]'
  go run reader.go <global.tar
  echo "libarchive: $(usr/bin/bsdtar -tf global.tar)"
} | tee seen
diff seen - <<'SEEN'
GNU tar: renamed 00:16:40
Python: renamed 1000
Go: member 5
libarchive: member
SEEN
