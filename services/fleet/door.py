"""The server of this node's peers at [fleet] listen, as long as it can be there. What keeps it from serving, such as a
certificate that has expired or an address that is taken, is told, and does not end the process: the node goes on asking
others. The others are told of its address while it serves, and only then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from services.fleet.config import Config
from services.fleet.peer_server import LIMITS, PeerServer, tls
from services.kit import http_server, loops
from services.kit.certificates import CertificateError, Certificates

log = logging.getLogger(__name__)


class Door:
    """Serves ``peers`` at the configured address. ``told`` is called with the address by which the others reach it once
    it serves, and with none once it does not.
    """

    def __init__(self, config: Config, peers: PeerServer, told: Callable[[str], None]) -> None:
        self.trouble = "it does not listen yet"
        """Why peers get nothing; empty if they do."""
        self._config = config
        self._peers = peers
        self._told = told

    async def serve(self) -> None:
        """Serve until cancelled. It is a loop of the process."""
        try:
            context = await asyncio.to_thread(tls, Certificates(self._config.address()))
            async with http_server.serving(self._config.listen, self._peers.answer, LIMITS, tls=context) as server:
                self.trouble = ""
                self._told(self._config.advertised)
                log.info("[fleet] listen: served at %s", server.address)
                await asyncio.get_running_loop().create_future()
        except CertificateError as error:
            self._fail(f"[fleet] {error}", error)
        except (OSError, UnicodeError) as error:
            self._fail(f"[fleet] listen = {self._config.listen!r}: {getattr(error, 'strerror', None) or error}", error)
        finally:
            self.trouble = self.trouble or "it has ended"
            self._told("")

    def _fail(self, words: str, error: Exception) -> None:
        self.trouble = words
        raise loops.Explained(f"peers get no blobs: {words}") from error
