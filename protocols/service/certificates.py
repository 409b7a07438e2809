"""A trial authority and the certificates of a federation on one laptop.

Whoever holds the authority's key can issue a certificate in any party's name. Here one person makes all of
them, which is right for a trial and wrong between organisations: there, each party makes its own key, keeps
it, and has it certified by an authority that all of them trust. Keys are ECDSA over P-256 (FIPS 186-5),
unencrypted in files that only their owner may read; certificates follow RFC 5280.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocols import private
from protocols.errors import ConfigError
from protocols.files import make_folder, whole_file
from protocols.network.tls import Credentials, network_name

AUTHORITY = "authority"
_BACKDATED = timedelta(minutes=5)  # clocks of laptops differ


def new_authority(folder: Path, *, days: float = 365.0, replace: bool = False) -> Path:
    """Make an authority: `authority.pem` and `authority.key` in `folder`; returns the path of the former.

    ConfigError if there is one already, unless `replace`.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("trial authority")
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_usage(signs_certificates=True), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]
    certificate = _builder(name, name, key, days, extensions).sign(key, SHA256())
    return _write(folder, AUTHORITY, key, certificate, replace)


def new_party(
    folder: Path, authority: Path, party: str, *, days: float = 90.0, replace: bool = False
) -> Credentials:
    """Make a key for `party` and have it certified by the authority in the folder `authority`.

    Writes `<party>.pem` and `<party>.key` into `folder`. The certificate names the party, and this machine
    (localhost, 127.0.0.1) for tools that check the address that they dialled. ConfigError if there is one
    already, unless `replace`, which renews it.
    """
    if network_name(party).casefold() == AUTHORITY:
        raise ConfigError(f"{party!r} is the name of the authority's own files; choose another")
    issuer, issuer_key = _authority(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    named = x509.SubjectAlternativeName([x509.DNSName(party), x509.DNSName("localhost"), here])
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (purposes, False),
        (named, False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False),
    ]
    builder = _builder(_subject(party), issuer.subject, key, days, extensions)
    certificate = _write(folder, party, key, builder.sign(issuer_key, SHA256()), replace)
    return Credentials(Path(authority) / f"{AUTHORITY}.pem", certificate, certificate.with_suffix(".key"))


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    path = Path(folder) / f"{AUTHORITY}.pem"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        key = load_pem_private_key(private.read_key(path.with_suffix(".key")), None)
    except FileNotFoundError as error:
        raise ConfigError(f"no authority: {error.filename} does not exist; make one first") from None
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"the authority in {folder} cannot be read: {type(error).__name__}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"the authority in {folder} has no elliptic-curve key; make one here")
    return certificate, key


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days: float,
    extensions: list[tuple[x509.ExtensionType, bool]],
) -> x509.CertificateBuilder:
    if not days > 0:
        raise ConfigError(f"days={days!r} should be above 0")
    start = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _BACKDATED)
        .not_valid_after(start + timedelta(days=days))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, replace: bool
) -> Path:
    """Write both files whole or not at all, the key for its owner only. Return the certificate's path."""
    path = Path(folder) / f"{name}.pem"
    secret = path.with_suffix(".key")
    for file in (path, secret):
        if file.exists() and not replace:
            raise ConfigError(f"{file} exists; pass replace=True to make a new one in its place")
    put(secret, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    put(path, certificate.public_bytes(Encoding.PEM), 0o644)
    return path


def put(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole or not at all, with these permissions from its first byte on. ConfigError for what
    the disk refuses."""
    try:
        make_folder(path.parent)
        with whole_file(path, mode=mode) as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from None


def fingerprint(certificate: Path) -> str:
    """SHA-256 of a certificate in hexadecimal, as the book revokes one. ConfigError if there is none."""
    try:
        found = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
    except OSError as error:
        raise ConfigError(f"{certificate}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{certificate} is no PEM certificate") from None
    return found.fingerprint(SHA256()).hex()
