"""Who a peer is: names that a certificate can carry, and the files that prove them.

Each party holds its own certificate and key, and the certificate of the authority that all parties of a
federation trust. Whoever holds the authority's key can be any party, so it belongs on no party's machine. The
files are read again at each handshake, so that a renewed certificate needs no restart.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from protocols import private
from protocols.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


class Material(NamedTuple):
    """The contents of the three PEM files. Its repr shows nothing of them."""

    authority: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Material(...)"


@dataclass(frozen=True)
class Credentials:
    """Paths of three PEM files: the authority's certificate, the party's certificate, the party's key."""

    authority: Path
    certificate: Path
    key: Path

    def read(self, party: str) -> Material:
        """Read the files as they are now. ConfigError, naming the file, for what no peer would accept."""
        try:
            authority, certificate = (Path(p).read_bytes() for p in (self.authority, self.certificate))
            found = Material(authority, certificate, private.read_key(Path(self.key)))
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}").at(party, "certificates") from None
        except ConfigError as error:
            raise error.at(party, "certificates") from None
        reason = self._fault(found, party)
        if reason:
            raise ConfigError(reason).at(party, "certificates")
        return found

    def _fault(self, found: Material, party: str) -> str:
        try:
            certificate = x509.load_pem_x509_certificate(found.certificate)
            authorities = x509.load_pem_x509_certificates(found.authority)
        except ValueError:
            return f"{self.certificate} or {self.authority} is no PEM certificate"
        try:
            key = load_pem_private_key(found.key, None)
        except (ValueError, TypeError):
            return f"{self.key} is no PEM private key without a password"
        public = (key.public_key(), certificate.public_key())
        mine, certified = (p.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for p in public)
        if mine != certified:
            return f"{self.key} is not the key of {self.certificate}"
        if party not in names(certificate):
            said = ", ".join(names(certificate)) or "nobody"
            return (
                f"{self.certificate} is for {said}, not for {party}, by the DNS names in its subjectAltName"
            )
        now = datetime.now(UTC)
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not first <= now <= last:
            return (
                f"{self.certificate} is valid from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, and "
                f"this machine's clock says {now:%Y-%m-%d %H:%M}; renew it, or set the clock"
            )
        chain = x509.load_pem_x509_certificates(found.certificate)
        if not any(_issued(chain[-1], authority) for authority in authorities):
            return f"{self.certificate} was not issued by {self.authority}"
        return ""


def names(certificate: x509.Certificate) -> list[str]:
    """Return the names that a certificate's owner may have: only the DNS names in its subjectAltName."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
    return list(extension.value.get_values_for_type(x509.DNSName))


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    if certificate == authority:
        return True
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def network_name(name: object) -> str:
    """Return `name` if a certificate can carry it as a party's; raise ConfigError otherwise."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.casefold() == "localhost":
        raise ConfigError(
            f"{name!r} cannot name a party on a network: 1 to 63 letters a-z, digits, hyphens and "
            "underscores, beginning and ending with a letter or digit; 'localhost' is taken"
        )
    return name


def check_address(address: str) -> str:
    """Return `address` if it is `host:port` or `[v6]:port`; raise ConfigError otherwise."""
    found = _ADDRESS.fullmatch(address)
    if not found or int(found["port"]) > 65535:
        raise ConfigError(f"{address!r} is no address; expected host:port, as in bank.example:7443")
    return address


def is_loopback(address: str) -> bool:
    """Return whether `host:port` stays on this machine."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def last_good(credentials: Credentials, party: str) -> Callable[[], Material]:
    """Return a function that gives the files as they are, or else their last good state. Errors as `read`'s.

    They are read again only once they have changed: gRPC asks at each connection, before a byte has come, so
    a stranger can cause this work as often as it connects.
    """
    marks: list[tuple[int, int, int]] = []
    good = credentials.read(party)

    def read() -> Material:
        nonlocal marks, good
        with suppress(ConfigError, OSError):
            found = _marks(credentials)
            if found != marks:
                good = credentials.read(party)
                marks = found
        return good

    return read


def _marks(credentials: Credentials) -> list[tuple[int, int, int]]:
    """Return values that change when a file is written, or another takes its name."""
    found = (os.stat(path) for path in (credentials.authority, credentials.certificate, credentials.key))
    return [(status.st_ino, status.st_mtime_ns, status.st_size) for status in found]


def server_credentials(read: Callable[[], Material]) -> grpc.ServerCredentials:
    """Set up mutual TLS for a server. Each handshake uses what `read` gives at that time."""
    served = read()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        before, served = served, read()
        return None if served == before else _configuration(served)

    return grpc.dynamic_ssl_server_credentials(_configuration(served), renewed, True)


def _configuration(found: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(found.key, found.certificate)], found.authority)


def channel_credentials(found: Material) -> grpc.ChannelCredentials:
    """Set up mutual TLS for one connection."""
    return grpc.ssl_channel_credentials(found.authority, found.key, found.certificate)
