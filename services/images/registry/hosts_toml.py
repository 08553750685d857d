"""A host directory: ``hosts.toml``, or the certificate files that Docker looks for, as containerd reads them (its
docs/hosts.md).

::

    server = "https://registry-1.docker.io"        # asked last; without it the namespace itself is

    [host."https://mirror.internal"]               # asked before, in the order of the file
      capabilities = ["pull", "resolve"]
      ca = "mirror.crt"                            # relative to the file
      dial_timeout = "1s"
      traceparent = true                           # ours: send it the trace context of each request
      [host."https://mirror.internal".header]
        x-team = "blue"

A directory without the file may have ``*.crt`` (authorities), ``*.cert`` and ``*.key`` (our own) for the namespace
itself. A file that cannot be parsed is an error that names file, line and key, and nothing is pulled. (containerd logs
it and asks the namespace itself as if the directory had no file: past the mirror, and without the file's TLS settings.)
An unknown key is ignored, as in containerd.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.images.registry.host import EVERYTHING, TLS, Capability, Host
from services.kit import errors, settings

CAPABILITIES = {
    "pull": Capability.PULL,
    "resolve": Capability.RESOLVE,
    "push": Capability.PUSH,
    "referrers": Capability.REFERRERS,
}

_KEYS = frozenset(
    {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "traceparent"}
)
"""The keys of a host. At the top of the file they are the server's, beside ``server`` and ``host``."""


def read_directory(directory: Path) -> tuple[Host, ...]:
    """The hosts of a host directory. The last one is ``server``; if it has no ``host``, it is the namespace itself.
    FailedPrecondition says what is wrong.
    """
    if text := text_of(directory):
        try:
            return parse(text, directory)
        except ValueError as error:  # including tomllib's errors, which name the line
            raise errors.FailedPrecondition(f"{directory / 'hosts.toml'}: {error}") from None
    return (Host(tls=_certificate_files(directory)),)


def text_of(directory: Path) -> str:
    """The contents of the directory's hosts.toml; "" if there is none."""
    file = directory / "hosts.toml"
    try:
        return file.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise errors.FailedPrecondition(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise errors.FailedPrecondition(f"{file}: {error}") from None


def parse(text: str, directory: Path) -> tuple[Host, ...]:
    """The hosts of a hosts.toml in ``directory``; ValueError names the line and key of an error."""
    table = tomllib.loads(text)
    hosts = table.get("host", {})
    if not isinstance(hosts, dict) or not all(isinstance(each, dict) for each in hosts.values()):
        raise ValueError(f'line {line_of(text, "host")}: host: not tables such as [host."https://mirror.internal"]')
    # tomllib keeps the file's order
    found = [_host(url, each, directory, text, ("host", url)) for url, each in hosts.items()]
    return (*found, _host(table.get("server", ""), table, directory, text, ()))


def unknown(text: str) -> Iterator[str]:
    """The unknown keys of a file that :func:`parse` accepts, each with its line."""
    table = tomllib.loads(text)
    for where, keys, known in (
        ((), table, _KEYS | {"server", "host"}),
        *((("host", url), each, _KEYS) for url, each in table.get("host", {}).items()),
    ):
        for key in keys:
            if key not in known:
                yield f"line {line_of(text, *where, key)}: unknown key {_dotted(*where, key)}"


def line_of(text: str, *path: str) -> int:
    """The line of a key in a valid TOML file; the line of its table if that of the key cannot be found."""
    table: list[str] = []
    best, length = 1, 0
    for number, line in enumerate(text.splitlines(), 1):
        here: list[str] = []
        if re.match(r"\s*\[", line):
            table = here = _keys_in(line)
        elif key := re.match(r"""\s*((?:"[^"]*"|'[^']*'|[\w-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[\w-]+))*)\s*=""", line):
            here = table + _keys_in(f"{key[1]} = 0")
        if length < len(here) <= len(path) and list(path[: len(here)]) == here:
            best, length = number, len(here)
    return best


def _keys_in(line: str) -> list[str]:
    """The keys, outermost first, of a line of TOML that begins a table or sets a value; empty for any other line."""
    try:
        found, keys = tomllib.loads(line), list[str]()
    except tomllib.TOMLDecodeError:
        return []
    while isinstance(found, dict) and found:
        key, found = next(iter(found.items()))
        keys.append(key)
    return keys


def _dotted(*path: str) -> str:
    return ".".join(key if re.fullmatch(r"[\w-]+", key) else f'"{key}"' for key in path)


def _host(url: Any, table: Mapping[str, Any], directory: Path, text: str, where: tuple[str, ...]) -> Host:
    try:
        if not isinstance(url, str):
            raise ValueError(f"{url!r} is not a string")  # noqa: TRY004 (of the file, not of a caller)
        scheme, host, path = (
            _location(url, override=_of(table, "override_path", bool, "true or false", False)) if url else ("", "", "")
        )
        dial = _of(table, "dial_timeout", str, "a duration such as 1s", "")
        return Host(
            scheme,
            host,
            path,
            capabilities=_capabilities(table.get("capabilities") or ()),
            tls=TLS(
                _paths(table.get("ca"), directory, "ca"),
                _client(table.get("client"), directory),
                _of(table, "skip_verify", bool, "true or false", None),
            ),
            header=_header(table.get("header", {})),
            dial_timeout=_duration(dial) if dial else None,
            traceparent=_of(table, "traceparent", bool, "true or false", False),
        )
    except ValueError as error:
        key = str(error).partition(":")[0].split(".")
        inside = key[0] in _KEYS
        line = line_of(text, *where, *(key if inside else () if where else ("server",)))
        between = "" if inside and not where else "." if inside else ": "
        raise ValueError(f"line {line}: {_dotted(*where or ('server',) * (not inside))}{between}{error}") from None


def _location(url: str, *, override: bool) -> tuple[str, str, str]:
    parts = urlsplit(url if url.startswith("http") else f"https://{url}")
    if not parts.netloc or parts.scheme not in ("http", "https"):
        raise ValueError(f'"{url}" is not the address of a host')
    path = parts.path
    if path:
        path = posixpath.normpath(path)
        path = "" if path in ("/", "//") else path
        return parts.scheme, parts.netloc, path if override or path.endswith("/v2") else f"{path}/v2"
    return parts.scheme, parts.netloc, "" if override else "/v2"


def _of(table: Mapping[str, Any], key: str, kind: type, words: str, default: Any) -> Any:
    value = table.get(key, default)
    if value is not default and not isinstance(value, kind):
        raise ValueError(f"{key}: {value!r} is not {words}")
    return value


def _duration(text: str) -> float:
    try:
        return settings.parse_duration(text)
    except ValueError as error:
        raise ValueError(f"dial_timeout: {error}") from None


def _capabilities(names: Any) -> Capability:
    if not isinstance(names, list | tuple) or not all(isinstance(each, str) for each in names):
        raise ValueError(f"capabilities: {names!r} is not a list of strings")
    found = Capability(0)
    for name in names:
        if name.lower() not in CAPABILITIES:
            raise ValueError(f'capabilities: "{name}" is none of {", ".join(CAPABILITIES)}')
        found |= CAPABILITIES[name.lower()]
    return found or EVERYTHING


def _strings(value: Any, key: str, convert: Callable[[str], str] = str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (convert(value),)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(convert(each) for each in value)
    raise ValueError(f"{key}: {value!r} is neither a string nor a list of strings")


def _paths(value: Any, directory: Path, key: str) -> tuple[str, ...]:
    return () if value is None else _strings(value, key, lambda path: str(directory / path))


def _client(value: Any, directory: Path) -> tuple[tuple[str, str], ...]:
    pairs = []
    for each in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(each, list) and len(each) != 2:
            raise ValueError(f"client: {each!r} is not a pair of a certificate and a key")
        files = _strings(each, "client")
        pairs.append((str(directory / files[0]), str(directory / files[1]) if len(files) > 1 and files[1] else ""))
    return tuple(pairs)


def _header(table: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(table, dict):
        raise ValueError(f"header: {table!r} is not a table")  # noqa: TRY004 (of the file, not of a caller)
    return tuple((name, value) for name, values in table.items() for value in _strings(values, f"header.{name}"))


def _certificate_files(directory: Path) -> TLS:
    try:
        names = sorted(entry.name for entry in directory.iterdir() if not entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return TLS()
    client = tuple(
        (str(directory / name), str(directory / key) if (key := name.removesuffix(".cert") + ".key") in names else "")
        for name in names
        if name.endswith(".cert")
    )
    return TLS(tuple(str(directory / name) for name in names if name.endswith(".crt")), client)
