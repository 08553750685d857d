"""Where an etcd cluster is and how it is spoken to: a table such as [metadata.etcd] or [fleet.etcd]."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from services.kit import errors
from services.kit.addresses import Address
from services.kit.settings import Seconds

PASSWORD_MOST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """An etcd cluster, of etcd 3.4 or later. ValueError, which begins with the key's name, for what makes no sense."""

    endpoints: tuple[str, ...] = ()
    """HOST:PORT of each member. All calls go to one of them, and to the next when it fails; name all members, so that
    any of them may be lost."""
    prefix: str = "/splitd/"
    """What the keys of this node begin with."""
    user: str = ""
    """An etcd user, whose role may read and write the prefix. For connections with TLS only."""
    password: str = field(default="", repr=False)
    """The user's password. A file is better: this one is in the configuration, which others may read."""
    password_file: str = ""
    """File with the user's password, on one line. It is read again whenever the node has to log in again."""
    tls: bool = False
    """Whether connections are TLS; they are so too if one of the next three is set."""
    ca: str = ""
    """File with the certificates (PEM) of those who may have signed the members'; empty: those that the machine
    trusts."""
    cert: str = ""
    """File with the certificate (PEM) that this node shows the members (mTLS)."""
    key: str = ""
    """File with the key (PEM, without a password) of cert; empty: it is in the same file."""
    timeout: Seconds = 5.0
    """How long one call may take, with its attempts at several members, and one write of a record, with its calls."""

    def __post_init__(self) -> None:
        for endpoint in self.endpoints:
            try:
                if self.address_of(endpoint).path:
                    raise ValueError(f"address: {endpoint!r} is not HOST:PORT")
            except ValueError as error:
                raise ValueError(f"endpoints: {str(error).removeprefix('address: ')}") from None
        if len(set(self.endpoints)) < len(self.endpoints):
            raise ValueError("endpoints: one of them is named twice")
        if len(self.endpoints) > 64:
            raise ValueError("endpoints: more than 64")
        if not self.prefix or "\0" in self.prefix or len(self.prefix.encode()) > 1024:
            raise ValueError("prefix: it has 1 to 1024 bytes, and no zero byte")
        self._check_user()
        if not 0.5 <= self.timeout <= 60:
            raise ValueError("timeout: it is at least 500ms and at most 1m")

    def _check_user(self) -> None:
        if self.user and not self.secure:
            raise ValueError(
                "user: a user needs TLS, since a password in clear text could be read on the way: set ca, or tls = true"
            )
        if self.password and self.password_file:
            raise ValueError("password: password_file is set, too: one of them is enough")
        if self.user and not (self.password or self.password_file):
            raise ValueError("user: it needs a password_file or a password")
        if not self.user and (self.password or self.password_file):
            raise ValueError("password: there is no user to it")
        if len(self.password) > PASSWORD_MOST:
            raise ValueError(f"password: it has more than {PASSWORD_MOST} characters")
        if self.password_file and not self.password_file.startswith("/"):
            raise ValueError(f"password_file: {self.password_file!r} is not an absolute path")

    @property
    def secure(self) -> bool:
        """Whether connections are TLS."""
        return bool(self.tls or self.ca or self.cert or self.key)

    def address_of(self, endpoint: str) -> Address:
        """How an endpoint is reached."""
        if "://" in endpoint:
            raise ValueError(f"address: {endpoint!r} is HOST:PORT, without a scheme (ca or tls = true makes it TLS)")
        return Address(
            address=endpoint,
            tls=self.tls,
            ca=self.ca,
            cert=self.cert,
            key=self.key,
            connect_timeout=min(2.0, self.timeout),
        )

    def secret(self) -> str:
        """The password. Unauthenticated, naming the file, if it cannot be read. It reads a file."""
        if not self.password_file:
            return self.password
        try:
            with Path(self.password_file).open(encoding="utf-8") as file:
                text = file.read(PASSWORD_MOST + 1)
        except OSError as error:
            raise errors.Unauthenticated(f"etcd's password_file {errors.words_of_path(error)}") from None
        except UnicodeDecodeError:
            raise errors.Unauthenticated(f"etcd's password_file {self.password_file}: it is not text") from None
        if not text.strip() or len(text) > PASSWORD_MOST:
            raise errors.Unauthenticated(
                f"etcd's password_file {self.password_file}: no password, or more than {PASSWORD_MOST} characters"
            )
        return text.splitlines()[0].strip()
