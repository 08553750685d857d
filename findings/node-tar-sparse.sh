#!/usr/bin/env bash
# Sparse files of GNU tar 1.34 (-S) in JavaScript: tar 7.5.23 and tar-stream 3.2.2 (npm).
# A good guess: they write the file, holes and all, as GNU tar, Python, Go and libarchive do, or they refuse what they do not know.
# What they do: in GNU's own format the file is missing after tar's extraction, with neither error nor warning, and is an entry of no type in tar-stream. In pax format both hand
# out a file named GNUSparseFile.PID/name, which begins with the map of the holes.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

npm init -y >/dev/null
npm install --silent --no-audit --no-fund tar@7.5.23 tar-stream@3.2.2 >/dev/null
truncate -s 1M name; echo end >>name
tar -S --format=gnu -cf gnu.tar name
tar -S --format=pax -cf pax.tar name
cat >reader.mjs <<'JS'
import fs from 'node:fs'
import path from 'node:path'
import * as tar from 'tar'
import stream from 'tar-stream'

const short = name => name.replace(/^\.\//, '').replace(/\.\d+/, '.PID')
for (const format of ['gnu', 'pax']) {
  fs.mkdirSync(format)
  const warnings = []
  await tar.x({ file: format + '.tar', cwd: format, onwarn: code => warnings.push(code) })
  const files = fs.readdirSync(format, { recursive: true, withFileTypes: true }).filter(entry => entry.isFile())
  console.log('tar,', format + ':', files.map(f => `${short(path.join(path.relative(format, f.parentPath ?? f.path), f.name))} ${fs.statSync(path.join(f.parentPath ?? f.path, f.name)).size}`), warnings)
  const extract = stream.extract()
  fs.createReadStream(format + '.tar').pipe(extract)
  for await (const entry of extract) {
    console.log('tar-stream,', format + ':', entry.header.type, short(entry.header.name), entry.header.size)
    entry.resume()
  }
}
JS
{
  python3 -c 'import tarfile; [print("Python,", f + ":", m.name, m.size) for f in ("gnu", "pax") for m in tarfile.open(f + ".tar")]'
  node reader.mjs
} | tee seen
diff seen - <<'SEEN'
Python, gnu: name 1048580
Python, pax: name 1048580
tar, gnu: [] []
tar-stream, gnu: null name 4
tar, pax: [ 'GNUSparseFile.PID/name 516' ] []
tar-stream, pax: file GNUSparseFile.PID/name 516
SEEN
