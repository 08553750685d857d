"""Settings of the fleet: tables [fleet] and [fleet.etcd]. A node is in a fleet if [fleet.etcd] has endpoints; else the
process ``fleet`` does not run.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.etcd.config import EtcdConfig
from services.kit import errors, identifiers, settings
from services.kit.addresses import Address

LEAST_UPLOAD = 64 << 10
NAMESPACES = 64
_EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 - compared, not listened at


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetEtcd(EtcdConfig):
    """The etcd cluster of the fleet, of etcd 3.4 or later. It holds nothing that cannot be made again."""

    prefix: str = "/splitd/fleet"
    """What the fleet's keys begin with; the same on all its nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The fleet: the nodes that know each other by one etcd, and give each other blobs. Without [fleet.etcd] endpoints
    the node is in no fleet. See docs/fleet.md.
    """

    name: str = ""
    """The node's name, which no other node of the fleet has; empty: the host name."""
    peers: bool = True
    """Whether the node gives blobs to the others and takes theirs. false: it only tells them what it has."""
    listen: str = ""
    """HOST:PORT where the other nodes get blobs, over mTLS; without HOST, at all addresses of the machine. Empty: they
    get none from this node."""
    advertise: str = ""
    """HOST:PORT by which the others reach that; empty: as listen. The certificate must have this host's name."""
    ca: str = ""
    """File with the certificates (PEM) of the fleet's own authority: whoever has a certificate of it gets the blobs of
    the shared namespaces."""
    cert: str = ""
    """File with the certificate (PEM) that this node shows the others, as server and as client."""
    key: str = ""
    """File with the key (PEM, without a password) of cert; empty: it is in the same file."""
    namespaces: tuple[str, ...] = ("default",)
    """The namespaces whose blobs are shared. The fleet learns nothing of others."""
    upload: int = 0
    """Bytes a second that this node sends to the others, at most, to all of them together; 0: no limit."""
    etcd: FleetEtcd = field(default_factory=FleetEtcd)
    """The cluster by which the nodes know each other, [fleet.etcd]."""

    def __post_init__(self) -> None:
        if not self.etcd.endpoints:
            said = [name for name in ("name", "listen", "advertise", "ca", "cert", "key") if getattr(self, name)]
            if said:
                raise ValueError(f'{said[0]}: a fleet needs [fleet.etcd] endpoints = ["HOST:PORT", ...]')
            return
        _check_name(self.node, self.name)
        if not self.namespaces or len(self.namespaces) > NAMESPACES:
            raise ValueError(f"namespaces: there must be 1 to {NAMESPACES} of them")
        for namespace in self.namespaces:
            try:
                identifiers.validate(namespace)
            except errors.InvalidArgument as error:
                raise ValueError(f"namespaces: {_words(error)}") from None
        if self.upload and self.upload < LEAST_UPLOAD:
            raise ValueError(f"upload: {self.upload} is less than {LEAST_UPLOAD} (64 KiB), and not 0")
        if self.peers:
            self._check_peers()

    def _check_peers(self) -> None:
        for name in ("ca", "cert"):
            if not getattr(self, name):
                raise ValueError(
                    f"{name}: nodes give each other blobs over mTLS, with certificates of an authority of their own: "
                    "set ca and cert (peers = false: they give each other none)"
                )
        if self.advertise and not self.listen:
            raise ValueError("advertise: there is no listen to it")
        if self.listen:
            host, colon, port = self.listen.rpartition(":")
            if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
                raise ValueError(f"listen: {self.listen!r} is not HOST:PORT")
            if host.strip("[]") in _EVERYWHERE and not self.advertise:
                raise ValueError(
                    f"advertise: listen = {self.listen!r} names no host: say by which HOST:PORT the others reach it"
                )
        for name in ("listen", "advertise"):
            if getattr(self, name):
                _check_address(name, getattr(self, name))
        self.address()  # the files are absolute paths, and key has a cert

    @property
    def node(self) -> str:
        """The name of this node."""
        return self.name or socket.gethostname()

    @property
    def advertised(self) -> str:
        """Where the other nodes reach this one; empty if it serves them nothing."""
        return (self.advertise or self.listen) if self.peers else ""

    def address(self) -> Address:
        """The certificates of this node, as those of an address."""
        return Address(address="127.0.0.1:1", ca=self.ca, cert=self.cert, key=self.key)


def _check_name(node: str, given: str) -> None:
    try:
        identifiers.validate(node)
    except errors.InvalidArgument as error:
        what = "" if given else f"the host name {node!r} cannot be the node's name, so choose one: "
        raise ValueError(f"name: {what}{_words(error)}") from None


def _check_address(name: str, value: str) -> None:
    if value.startswith(("/", "unix:")) or "://" in value:
        raise ValueError(f"{name}: {value!r} is not HOST:PORT")
    if value.startswith(":"):
        return
    try:
        Address(address=value)
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).removeprefix('address: ')}") from None


def _words(error: errors.NodeError) -> str:
    return str(error).removesuffix(f": {error.suffix}")


def check(file: settings.File) -> Iterator[tuple[str, str]]:
    """What ``splitd config check`` finds about files that the settings name."""
    from services.kit.certificates import CertificateError, Certificates  # which loads TLS

    config = settings.load(Config, file, "fleet")
    if config.etcd.endpoints and config.peers:
        certificates = Certificates(config.address())
        try:
            certificates.context()
            certificates.server_context()
        except CertificateError as error:
            yield "trouble", f"config file {file.path}: [fleet] {error}"
