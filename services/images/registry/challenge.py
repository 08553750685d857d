"""WWW-Authenticate headers: the authentication that a server asks for with a 401 answer (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BARE = re.compile(r"[^\s,]*")  # more than a token: unquoted URLs are met
_EQUALS = re.compile(r"\s*=\s*")
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge: ``bearer`` or ``basic`` (others are dropped), and its parameters, with names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate headers, bearer first. One header may have several; a malformed one ends
    the header.
    """
    found = [Challenge(scheme, parameters) for header in headers for scheme, parameters in _challenges(header)]
    return sorted(
        (each for each in found if each.scheme in ("bearer", "basic")), key=lambda each: each.scheme != "bearer"
    )


def _challenges(header: str) -> list[tuple[str, dict[str, str]]]:
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while at < len(header):
        if header[at] in " \t,":
            at += 1
            continue
        name = _TOKEN.match(header, at)
        if name is None:
            break
        at = name.end()
        equals = _EQUALS.match(header, at)
        if equals is None or not found:  # not a parameter: a challenge begins
            found.append((name[0].lower(), {}))
            continue
        at = equals.end()
        value = _QUOTED.match(header, at)
        if value is not None:
            found[-1][1].setdefault(name[0].lower(), _ESCAPED.sub(r"\1", value[1]))
        elif header.startswith('"', at):
            break
        else:
            value = _BARE.match(header, at)
            assert value is not None
            found[-1][1].setdefault(name[0].lower(), value[0])
        at = value.end()
    return found
