#!/usr/bin/env bash
# dockerfile-parse 2.0.1 (PyPI), which build systems use to read and change Dockerfiles, with valid ones.
# A good guess: a here-document's lines belong to their RUN; ${NAME:-default} in FROM gives the default; the escape directive holds for values too.
# What it does: lines of a here-document are instructions: a FROM in one is the base image, an ENV in one is a variable, and the end mark is an instruction. ${NAME:-default} becomes
# ":-default}". With "# escape=`" a backslash in a value is still dropped.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install dockerfile-parse==2.0.1 2>/dev/null
v/bin/python - <<'PYTHON' | tee seen
import io

from dockerfile_parse import DockerfileParser


def parsed(text):
    parser = DockerfileParser(fileobj=io.BytesIO())
    parser.content = text
    return parser


query = parsed("FROM debian\nRUN psql <<END\nSELECT a\nFROM table_a\nEND\n")
print("here-document:", query.baseimage, query.parent_images, [each["instruction"] for each in query.structure])
print("ENV in one:", parsed("FROM debian\nRUN cat <<END >/etc/conf\nENV KEY=value\nEND\n").envs)
print("default:", parsed("ARG TAG\nFROM debian:${TAG:-12}\n").baseimage, parsed("FROM debian\nENV A=${B:-default}\n").envs)
print("escape:", parsed("# escape=`\nFROM windows\nENV A=C:\\folder\n").envs)
PYTHON
diff seen - <<'SEEN'
here-document: table_a ['debian', 'table_a'] ['FROM', 'RUN', 'SELECT', 'FROM', 'END']
ENV in one: {'KEY': 'value'}
default: debian::-12} {'A': ':-default}'}
escape: {'A': 'C:folder'}
SEEN
