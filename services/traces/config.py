"""Settings of the traces service: table [traces]. What is traced at all is said in [tracing]."""

from __future__ import annotations

from dataclasses import dataclass

from services.kit import page_address
from services.kit.settings import Seconds

LEAST = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The traces service: an OpenTelemetry collector of the node's own, and what it keeps."""

    size: int = 256 << 20
    """Bytes that the store may take on the disk, 16 MiB at least. The oldest traces go first, those of single calls
    before those of pulls and the like.
    """
    age: Seconds = 7 * 86400.0
    """Age at which a trace is removed."""
    slow: Seconds = 10.0
    """Operations that take this long are slow, but runs and execs, which last as long as their containers. Slow and
    failed ones are kept longer.
    """
    kept_age: Seconds = 30 * 86400.0
    """Age at which a slow or failed trace is removed."""
    kept_share: float = 0.25
    """The share of the store in which slow and failed traces do not make room for others."""
    queue: int = 8 << 20
    """Bytes of memory that spans may take until they are written. Beyond it spans are dropped and counted."""
    running: Seconds = 30.0
    """Operations that take longer are logged while they run, once a minute; "0s": none."""
    address: str = ""
    """Where the page is served, such as "127.0.0.1:7788", or the absolute path of a unix socket (mode 0600); empty:
    nowhere. There is no password: whoever reaches it sees all traces.
    """
    hosts: tuple[str, ...] = ()
    """Names by which browsers may ask for the page, besides those of loopback and the host of ``address``: of a proxy,
    for example. Requests for other names are refused, since anybody's name may be made to point here.
    """
    grace: Seconds = 5.0
    """Time for which calls may go on after the service was told to stop."""

    def __post_init__(self) -> None:
        if self.size < LEAST:
            raise ValueError(f"size: {self.size} is less than {LEAST}")
        if not 0 <= self.kept_share <= 1:
            raise ValueError(f"kept_share: {self.kept_share} is not between 0 and 1")
        if self.queue < 1 << 16:
            raise ValueError(f"queue: {self.queue} is less than {1 << 16}")
        if self.kept_age < self.age:
            raise ValueError("kept_age is less than age")
        for host in self.hosts:
            if not host or host.count(":") == 1 or not set(host).isdisjoint("/@[] "):
                raise ValueError(f"hosts: {host!r} is no name: say it without scheme, port and brackets")
        page_address.check(self.address)
