"""Shows requests as text, for people who investigate a registry's behaviour. Everything that could be a secret is left
out.

Of a request's headers, only those are shown that this package sets by itself, since those of hosts.toml and of the
client may identify the client; of Authorization, the scheme. Of a URL's query, only parameters of the registry API:
others may permit reading a blob (presigned URLs), or continuing an upload. Token servers' answers and request bodies
are not shown at all, nor are blobs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

Show = Callable[[str], None]
"""Takes lines of text, which end in newlines. Never waits and never fails."""

HIDDEN = "<redacted>"
BODY_LIMIT = 16 << 10
"""Bytes of a manifest or of an error's explanation that are shown."""

_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "content-length",
        "content-range",
        "content-type",
        "if-match",
        "range",
        "traceparent",
        "tracestate",
        "user-agent",
    }
)
_PARAMETERS = frozenset({"artifactType", "digest", "from", "last", "mount", "n", "ns", "scope", "service"})
_ADDRESSES = frozenset({"content-location", "link", "location"})
_SECRET = re.compile("cookie|token|secret|authorization|signature|password|api-?key", re.IGNORECASE)

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class HttpDebug:
    """The debug output of a transfer: its requests with their answers, and their connections."""

    requests: Show | None = None
    connections: Show | None = None


NO_DEBUG = HttpDebug()


class Exchange:
    """One request that is shown to ``watch``. Its lines begin with its number, since several may be active."""

    def __init__(self, watch: HttpDebug, *, private: bool) -> None:
        self._watch = watch
        self._private = private
        """The body of its answer is not shown."""
        self._number = next(_numbers) if watch is not NO_DEBUG else 0

    def request(self, method: str, url: str, headers: Iterable[tuple[str, str]], *, body: bool) -> None:
        """The request is sent."""
        if self._watch.requests is not None:
            self._show(
                ">",
                [
                    f"{method} {address(url)}",
                    *(f"{name}: {_sent(name, value)}" for name, value in headers),
                    *(["(a body, which is not shown)"] if body else []),
                ],
            )

    def answer(self, status: int, reason: str, headers: Mapping[str, str]) -> None:
        """The head of the answer came."""
        if self._watch.requests is not None:
            self._show(
                "<",
                [
                    f"{status} {reason}".rstrip(),
                    *(f"{name}: {_received(name, value)}" for name, value in headers.items()),
                ],
            )

    def body(self, data: bytes, media_type: str) -> None:
        """The answer's body, if it is small and was read as a whole."""
        if self._watch.requests is not None and data and not self._private:
            is_text = media_type.startswith("text/") or "json" in media_type
            rest = len(data) - BODY_LIMIT
            self._show(
                "<",
                [
                    *data[:BODY_LIMIT].decode(errors="replace").splitlines(),
                    *([f"({rest} bytes more)"] if rest > 0 else []),
                ]
                if is_text
                else [f"({len(data)} bytes of {media_type or 'no known type'})"],
            )

    def failed(self, cause: str) -> None:
        """There is no answer."""
        if self._watch.requests is not None:
            self._show("<", [f"no answer: {cause}"])

    def connection(self, host: str, peer: str, took: Mapping[str, float], *, reused: bool) -> None:
        """The connection of the request, or the address that was tried last; ``took`` is in seconds, by phase."""
        if self._watch.connections is not None:
            phases = ", ".join(f"{phase.replace('_', ' ')} {seconds * 1000:.1f} ms" for phase, seconds in took.items())
            how = "reused" if reused else "new" if "first_byte" in took else "no answer"
            self._watch.connections(
                f"{self._number}= connection to {host}{f' at {peer}' if peer else ''}: "
                f"{how}{f'; {phases}' if phases else ''}\n"
            )

    def _show(self, mark: str, lines: Iterable[str]) -> None:
        assert self._watch.requests is not None
        self._watch.requests("".join(f"{self._number}{mark} {_printable(line)}\n" for line in lines))


def address(url: str) -> str:
    """A URL without possible secrets: without its user, and without the values of unknown parameters."""
    parts = urlsplit(url)
    query = "&".join(
        f"{quote(key)}={quote(value, safe=':/,') if key in _PARAMETERS else HIDDEN}"
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment=""))


def _sent(name: str, value: str) -> str:
    if name.lower() in _HEADERS:
        return value
    return f"{value.partition(' ')[0]} {HIDDEN}" if name.lower() == "authorization" and " " in value else HIDDEN


def _received(name: str, value: str) -> str:
    if _SECRET.search(name) and name.lower() != "www-authenticate":
        return HIDDEN
    return (
        re.sub(r"""(?:https?://|/)[^\s<>;"]+""", lambda found: address(found[0]), value)
        if name.lower() in _ADDRESSES
        else value
    )


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in line)
