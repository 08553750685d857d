"""TLS for calls to a service elsewhere: the certificates of an :class:`~services.kit.addresses.Address`, checked before
they are used, and read again when their files change.

Every error names the file and what is wrong with it.
"""

from __future__ import annotations

import datetime
import logging
import os
import ssl
from collections.abc import Callable
from typing import NoReturn

from services.kit import errors
from services.kit.addresses import Address

log = logging.getLogger(__name__)

LARGEST = 4 << 20
"""Bytes of a file, at most; a machine's bundle of all authorities has some 200 KB."""
CLOSED = "connection closed"
"""The words of a transport whose peer has closed."""
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class CertificateError(Exception):
    """A file cannot be used. The message names it and the reason."""


class Certificates:
    """The certificates of one address."""

    def __init__(self, address: Address, *, now: Callable[[], datetime.datetime] = _now) -> None:
        self._address = address
        self._now = now
        self._seen: tuple[object, ...] = ()
        self._context: ssl.SSLContext | None = None

    def changed(self) -> bool:
        """Whether a file is another one than when :meth:`context` or :meth:`contents` read it."""
        return self.files() != self._seen

    def context(self) -> ssl.SSLContext:
        """How to connect, by the files as they are now. CertificateError if they cannot be used. It reads files."""
        if self._context is None or self.changed():
            self._context = None
            self._seen = self.files()
            self._context = self._made(ssl.PROTOCOL_TLS_CLIENT)
        self._check_own()  # it may have expired since
        return self._context

    def server_context(self) -> ssl.SSLContext:
        """How to accept connections at the address, by the files as they are now. The clients' certificates are checked
        with ``ca``, if that is given. CertificateError if the files cannot be used. It reads files.
        """
        context = self._made(ssl.PROTOCOL_TLS_SERVER)
        if self._address.ca:
            context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_TICKET  # nobody goes on with a session that other certificates have allowed
        context.num_tickets = 0
        return context

    def serving(self) -> ssl.SSLContext:
        """:meth:`server_context` for a server that lasts: each connection is agreed on with the files as they are
        then. If they cannot be used, those from before are, and the log says why.
        """
        seen, current = self.files(), self.server_context()

        def renewed(connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
            nonlocal seen, current
            if (now := self.files()) != seen:
                seen = now
                try:
                    current = self.server_context()
                    log.info("%s is served with new certificates", self._address)
                except CertificateError as error:
                    log.error("%s is served with the certificates from before: %s", self._address, error)
            connection.context = current

        entrance = self.server_context()
        entrance.sni_callback = renewed  # called for each connection, also if the client names no server
        return entrance

    def contents(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The bytes of authorities, key and certificate, None for those that are not given. CertificateError as
        :meth:`context`.
        """
        self.context()
        mine = self._address
        key = mine.key or mine.cert
        return (
            _read("ca", mine.ca).encode() if mine.ca else None,
            _read("key", key).encode() if key else None,
            _read("cert", mine.cert).encode() if mine.cert else None,
        )

    def files(self) -> tuple[object, ...]:
        """The state of the files, which differs once one of them was replaced."""
        found: list[object] = []
        for path in (self._address.ca, self._address.cert, self._address.key):
            try:
                status = os.stat(path) if path else None
            except OSError as error:
                found.append(error.errno)
            else:
                found.append(status and (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(found)

    def _made(self, protocol: ssl._SSLMethod) -> ssl.SSLContext:
        mine = self._address
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        if mine.ca:
            text = _read("ca", mine.ca)
            self._check_time("ca", mine.ca, text, all_of_them=True)
            try:
                context.load_verify_locations(cadata=text)
            except (ssl.SSLError, ValueError) as error:
                raise CertificateError(f"ca {mine.ca}: it has no usable certificate ({_reason(error)})") from None
        elif protocol == ssl.PROTOCOL_TLS_CLIENT:
            context.load_default_certs()
        if mine.cert:
            self._check_own()
            key = mine.key or mine.cert
            if "PRIVATE KEY-----" not in _read("key", key):
                raise CertificateError(f"key {key}: it has no private key in PEM form")
            try:
                context.load_cert_chain(mine.cert, key, password=_no_password)
            except _PasswordError:
                raise CertificateError(f"key {key}: it has a password, which nobody is there to type") from None
            except ssl.SSLError as error:
                if error.reason == "KEY_VALUES_MISMATCH":
                    raise CertificateError(f"key {key}: it is not the key of certificate {mine.cert}") from None
                raise CertificateError(
                    f"cert {mine.cert} with key {key}: they cannot be used ({_reason(error)})"
                ) from None
            except OSError as error:
                raise CertificateError(f"cert {mine.cert} with key {key}: {errors.words(error)}") from None
        return context

    def _check_own(self) -> None:
        if self._address.cert:
            self._check_time("cert", self._address.cert, _read("cert", self._address.cert), all_of_them=False)

    def _check_time(self, what: str, path: str, text: str, *, all_of_them: bool) -> None:
        """CertificateError if the first certificate of a file is not valid now; if ``all_of_them``, only if none is."""
        now, said = self._now(), ""
        for der in _certificates(what, path, text, 1000 if all_of_them else 1):
            wrong = _untimely(der, now)
            if not wrong:
                return
            said = said or wrong
        raise CertificateError(f"{what} {path}: {said}")

    def explained(self, error: BaseException) -> str:
        """What went wrong while connecting, in words; empty if it is not about certificates."""
        mine = self._address
        shown = f"this node shows cert {mine.cert}" if mine.cert else "this node shows no certificate"
        trusted = f"ca {mine.ca}" if mine.ca else "the authorities that this machine trusts"
        if isinstance(error, ssl.SSLCertVerificationError):
            said = error.verify_message or _reason(error)
            said = said[:1].lower() + said[1:].rstrip(".")
            return f"its certificate is not accepted: {said} (checked for {mine.expected_name} with {trusted})"
        if isinstance(error, ssl.SSLError):
            reason = error.reason or ""
            if "ALERT" in reason:
                return f"it refuses the connection: {_reason(error)} ({shown})"
            if reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "HTTP_REQUEST"):
                return f"it does not speak TLS ({_reason(error)})"
            return _reason(error)
        if isinstance(error, ConnectionError):  # some servers refuse a certificate by nothing else
            return f"it closed the connection at once ({shown})" if str(error) == CLOSED else ""
        return ""


class _PasswordError(Exception):
    """A key has a password."""


def _no_password() -> NoReturn:
    raise _PasswordError


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else str(error) or type(error).__name__


def _read(what: str, path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise CertificateError(f"{what} {path}: {errors.words(error)}") from None
    if len(data) > LARGEST:
        raise CertificateError(f"{what} {path}: it has more than {LARGEST} bytes")
    return data.decode("ascii", "replace")


def _certificates(what: str, path: str, text: str, most: int) -> list[bytes]:
    found: list[bytes] = []
    at = text.find(_BEGIN)
    while at >= 0 and len(found) < most:
        end = text.find(_END, at)
        if end < 0:
            break
        try:
            found.append(ssl.PEM_cert_to_DER_cert(text[at : end + len(_END)] + "\n"))
        except ValueError:
            raise CertificateError(f"{what} {path}: a certificate in it is damaged") from None
        at = text.find(_BEGIN, end)
    if not found:
        raise CertificateError(f"{what} {path}: it has no certificate in PEM form")
    return found


def _untimely(der: bytes, now: datetime.datetime) -> str:
    """Why a certificate is not valid ``now``; empty if it is, or if its times cannot be read here."""
    try:
        first, last = validity(der)
    except (ValueError, IndexError):
        return ""  # OpenSSL says what is wrong with it
    if now > last:
        return f"it expired at {last:%Y-%m-%d %H:%M:%S} UTC"
    if now < first:
        return f"it is not valid before {first:%Y-%m-%d %H:%M:%S} UTC"
    return ""


def validity(der: bytes) -> tuple[datetime.datetime, datetime.datetime]:
    """The times between which a certificate is valid (RFC 5280, section 4.1.2.5). ValueError or IndexError if ``der``
    is none.
    """
    _, certificate = _element(der, 0)
    _, body = _element(der, certificate.start)
    at = body.start
    tag, inner = _element(der, at)
    if tag == 0xA0:  # the version, if it is not 1
        at = inner.stop
    for _ in range(3):  # serial number, signature algorithm, issuer
        at = _element(der, at)[1].stop
    _, times = _element(der, at)
    kind, first = _element(der, times.start)
    kind_of_last, last = _element(der, first.stop)
    return _time(kind, der[first]), _time(kind_of_last, der[last])


def _element(der: bytes, at: int) -> tuple[int, slice]:
    """Tag and contents of the DER element at an offset."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4:
            raise ValueError("not DER")
        length, start = int.from_bytes(der[start : start + count], "big"), start + count
    if start + length > len(der):
        raise ValueError("cut off")
    return tag, slice(start, start + length)


def _time(tag: int, data: bytes) -> datetime.datetime:
    text = data.decode("ascii")
    if tag == 0x17:  # UTCTime: years 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != 0x18:
        raise ValueError("not a time")
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC)
