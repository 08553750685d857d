"""What ``splitd config check`` finds about an etcd table that is well formed: its files."""

from __future__ import annotations

from collections.abc import Iterator

from services.etcd.config import EtcdConfig
from services.kit import errors
from services.kit.certificates import CertificateError, Certificates


def troubles(config: EtcdConfig) -> Iterator[str]:
    """A line for each file that cannot be used as it is now, with its name and the reason. It reads the files. A table
    without endpoints is not used, so nothing is wrong with it.
    """
    if not config.endpoints:
        return
    if config.secure:
        try:
            Certificates(config.address_of(config.endpoints[0])).context()
        except CertificateError as error:
            yield str(error)
    if config.user:
        try:
            config.secret()
        except errors.NodeError as error:
            yield str(error).removesuffix(f": {error.suffix}")
