#!/usr/bin/env bash
# npm's pako 3.0.3 and fflate 0.8.3, and PyPI's deflate 0.9.0 (libdeflate), beside Node's zlib: gzip with two members, as RFC 1952 allows; in an eStargz layer each file is a member.
# A good guess: each reads all members, or only the first, and one library does the same in all of its ways.
# What they do: pako reads both if it gets all at once, and stops after the first if a piece ends where the member ends. fflate's gunzipSync gives the first, cut to the length of the last; its
# stream gives both. deflate raises an error.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

npm install --silent --no-audit --no-fund pako@3.0.3 fflate@0.8.3 >/dev/null 2>&1
python3 -m venv v && v/bin/pip -q install deflate==0.9.0 2>/dev/null
cat >read.mjs <<'JS'
import { gunzipSync, gzipSync } from "node:zlib";
import * as fflate from "fflate";
import * as pako from "pako";

const members = [gzipSync("first member, "), gzipSync("second")];
const data = Buffer.concat(members);
const say = (way, result) => console.log(`${way}: ${Buffer.from(result).toString()}`);
say("Node", gunzipSync(data));
say("pako, at once", pako.ungzip(data));
const inflate = new pako.Inflate();
members.forEach((member, at) => inflate.push(member, at === 1));
say("pako, in pieces", inflate.result);
say("fflate, gunzipSync", fflate.gunzipSync(data));
const pieces = [];
const stream = new fflate.Gunzip((piece) => pieces.push(Buffer.from(piece)));
members.forEach((member, at) => stream.push(member, at === 1));
say("fflate, a stream", Buffer.concat(pieces));
JS
cat >read.py <<'PYTHON'
import gzip

import deflate

try:
    print("deflate:", deflate.gzip_decompress(gzip.compress(b"first member, ") + gzip.compress(b"second")))
except deflate.DeflateError as error:
    print("deflate:", error)
PYTHON
{ node read.mjs; v/bin/python read.py; } | tee seen
diff seen - <<'SEEN'
Node: first member, second
pako, at once: first member, second
pako, in pieces: first member, 
fflate, gunzipSync: first 
fflate, a stream: first member, second
deflate: Decompression failed
SEEN
