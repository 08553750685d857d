#!/usr/bin/env bash
# tar-stream 3.2.2 (npm): times that do not fit into a tar header's field, or have a fraction.
# A good guess: mtime is the one of the pax header where there is one, and what GNU tar writes before 1970 is read as it is meant.
# What it does: pax's mtime is in `pax` and not in `mtime`, which has the plain field: the time rounded, or 1970 for 1960. GNU's number for a time before 1970 is read one second too late.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

npm init -y >/dev/null
npm install --silent --no-audit --no-fund tar-stream@3.2.2 >/dev/null
python3 - <<'PYTHON'
import tarfile

for name, time, form in (("fraction", 1.75, tarfile.PAX_FORMAT), ("pax-1960", -315619200, tarfile.PAX_FORMAT), ("gnu-1960", -315619200, tarfile.GNU_FORMAT)):
    with tarfile.open(name + ".tar", "w", format=form) as tar:
        member = tarfile.TarInfo(name)
        member.mtime = time
        tar.addfile(member)
PYTHON
cat >reader.mjs <<'JS'
import fs from 'node:fs'
import stream from 'tar-stream'

for (const name of ['fraction', 'pax-1960', 'gnu-1960']) {
  const extract = stream.extract()
  fs.createReadStream(name + '.tar').pipe(extract)
  for await (const entry of extract) {
    console.log(name + ':', entry.header.mtime.toISOString(), 'pax:', entry.header.pax?.mtime)
    entry.resume()
  }
}
JS
node reader.mjs | tee seen
diff seen - <<'SEEN'
fraction: 1970-01-01T00:00:02.000Z pax: 1.75
pax-1960: 1970-01-01T00:00:00.000Z pax: -315619200
gnu-1960: 1960-01-01T00:00:01.000Z pax: undefined
SEEN
