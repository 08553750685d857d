#!/usr/bin/env bash
# oras 0.2.43, the Python library (PyPI), with distribution 2.8.2 (docker-registry) of Debian 12.
# A good guess: as with oras in Go, the title of a pushed file is its path, so that a/conf and b/conf come back as two files; and localhost is a registry.
# What it does: the title is the last part of the path: a pull writes the second file over the first, and names it twice as pulled.
# `localhost/team/app` is a repository of Docker Hub.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download docker-registry=2.8.2+ds1-1 && dpkg -x docker-registry_*.deb .
python3 -m venv v && v/bin/pip -q install oras==0.2.43 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: "127.0.0.1:%s"}\nlog: {level: error}\n' "$work" "$port" >config.yml
usr/bin/docker-registry serve config.yml >log 2>&1 &
for _ in $(seq 100); do curl -so /dev/null "http://127.0.0.1:$port/v2/" && break; sleep 0.1; done

mkdir a b; echo first >a/conf; echo second >b/conf
v/bin/python - "$port" 2>/dev/null <<'PYTHON' | tee seen
import contextlib
import os
import sys

import oras.client
import oras.container

target = f"127.0.0.1:{sys.argv[1]}/team/app:1"
with contextlib.redirect_stdout(sys.stderr):
    client = oras.client.OrasClient(insecure=True)
    client.push(target=target, files=["a/conf", "b/conf"])
    pulled = client.pull(target=target, outdir="out")
print("pulled:", *(os.path.relpath(path) for path in pulled))
print("there:", *(f"{name}: {open('out/' + name).read().strip()}" for name in os.listdir("out")))
print("localhost/team/app is at", oras.container.Container("localhost/team/app:1").registry)
PYTHON
diff seen - <<'SEEN'
pulled: out/conf out/conf
there: conf: second
localhost/team/app is at docker.io
SEEN
