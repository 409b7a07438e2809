"""Which certificate a peer holds: a proof holds for one challenge, one dialler and one certificate."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from protocols.errors import ConfigError
from protocols.network.frames import RefusedError
from protocols.network.parties_pb2 import Hello
from protocols.network.proof import check_proof, fingerprint, leaf, prove, read_fingerprints
from protocols.network.tls import Material
from protocols.service.certificates import new_authority, new_party
from tests.support.network import certified, trial

CHALLENGE, BANK, SHOP = b"c" * 16, b"b" * 16, b"s" * 16


def material(party: str) -> Material:
    return certified(party).read(party)


def asked(**changed: Any) -> Hello:
    return Hello(**{"party": "bank", "challenge": CHALLENGE, "session": BANK, **changed})


def answer(shop: Material, to: Hello | None = None, dialler: Material | None = None, **more: Any) -> Hello:
    """What shop says to a bank that asked."""
    shown = prove(shop, to or asked(), SHOP, leaf(dialler or material("bank")))
    return Hello(**{"party": "shop", "session": SHOP, **shown, **more})


def check(hello: Hello, revoked: frozenset[str] = frozenset()) -> None:
    check_proof(hello, "shop", asked(), material("bank"), revoked)


KEYS: dict[str, Callable[[], Any]] = {
    "ECDSA P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ECDSA P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


def issue(
    name: str,
    key: Any,
    issuer: x509.Certificate,
    issuer_key: Any,
    ca: bool = False,
    length: int = 0,
    backdated: float = 1.0,
) -> Material:
    """A certificate of `name`, valid for two days from so many days ago. length: authorities below it."""
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=backdated))
        .not_valid_after(now - timedelta(days=backdated) + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca, length if ca else None), True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(names, False)
        .add_extension(usage, False)
    )
    if ca:
        signs = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(signs, True)
    certificate = builder.sign(issuer_key, SHA256())
    return Material(
        (trial() / "authority.pem").read_bytes(),
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def authority() -> tuple[x509.Certificate, Any]:
    pem = (trial() / "authority.pem").read_bytes()
    return x509.load_pem_x509_certificate(pem), load_pem_private_key(
        (trial() / "authority.key").read_bytes(), None
    )


@pytest.mark.parametrize("kind", KEYS)
def test_whoever_holds_a_certificate_proves_it(kind: str) -> None:
    check(answer(issue("shop", KEYS[kind](), *authority())))


def test_a_revoked_certificate_is_named_by_its_fingerprint() -> None:
    revoked = fingerprint(leaf(material("shop")))
    with pytest.raises(RefusedError, match=rf"of shop with fingerprint {revoked[:16]}.* of bank; shop needs"):
        check(answer(material("shop")), frozenset({revoked}))


def stranger(folder: Path) -> Hello:
    new_authority(folder)
    return answer(new_party(folder, folder, "shop").read("shop"))


def by_a_party(folder: Path) -> Hello:
    """A certificate that another party has issued, with its own in the chain."""
    post = material("post")
    forged = issue(
        "shop",
        KEYS["ECDSA P-256"](),
        x509.load_pem_x509_certificate(post.certificate),
        load_pem_private_key(post.key, None),
    )
    return answer(forged._replace(certificate=forged.certificate + post.certificate))


FALSE: dict[str, Callable[[Path], Hello]] = {
    "another challenge": lambda _: answer(material("shop"), asked(challenge=b"x" * 16)),
    "another dialler's session": lambda _: answer(material("shop"), asked(session=b"x" * 16)),
    "another session of its own": lambda _: answer(material("shop"), session=b"x" * 16),
    "made for another dialler": lambda _: answer(material("shop"), dialler=material("post")),
    "another name": lambda _: answer(material("post")),
    "another authority": stranger,
    "issued by a party": by_a_party,
    "not valid any more": lambda _: answer(issue("shop", KEYS["ECDSA P-256"](), *authority(), backdated=3.0)),
    "not valid yet": lambda _: answer(issue("shop", KEYS["ECDSA P-256"](), *authority(), backdated=-1.0)),
    "no signature at all": lambda _: answer(material("shop"), proof=b"\0"),
    "no certificate at all": lambda _: answer(material("shop"), certificates=[b"\0"]),
}


@pytest.mark.parametrize("case", FALSE)
def test_a_proof_that_proves_something_else(case: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="shop does not prove that it holds a certificate of that name"):
        check(FALSE[case](tmp_path))


@pytest.mark.parametrize("missing", [{"proof": b""}, {"certificates": []}, {"certificates": [b"x"] * 9}])
def test_no_proof_where_one_was_asked_for(missing: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="shop does not prove which certificate it holds"):
        check(answer(material("shop"), **missing))


def test_an_authority_in_between_is_part_of_the_proof() -> None:
    root_key, key = KEYS["RSA"](), KEYS["ECDSA P-256"]()
    root = issue("root", root_key, *authority(), ca=True, length=1)
    middle = issue("middle", key, x509.load_pem_x509_certificate(root.certificate), root_key, ca=True)
    below = issue("shop", KEYS["RSA"](), x509.load_pem_x509_certificate(middle.certificate), key)
    hello = answer(below._replace(certificate=below.certificate + middle.certificate))
    ours = material("bank")._replace(authority=root.certificate)
    check_proof(hello, "shop", asked(), ours, frozenset())
    del hello.certificates[1]
    with pytest.raises(RefusedError, match="shop does not prove"):
        check_proof(hello, "shop", asked(), ours, frozenset())


def bare(name: str, issuer: str, signer: Any, key: Any, *extensions: x509.ExtensionType) -> x509.Certificate:
    """A certificate with nothing in it that nobody asked for, as openssl makes them."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, False)
    return builder.sign(signer, SHA256())


SHOPS = x509.SubjectAlternativeName([x509.DNSName("shop")])
CA = x509.BasicConstraints(True, None)
SIGNS = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
BOTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
DIALS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
MADE: dict[str, tuple[list[Any], list[Any], bool]] = {  # of the authority, and of the party
    "as openssl does": ([CA], [SHOPS], True),
    "for both purposes": ([CA], [SHOPS, BOTH], True),
    "by one that is no authority": ([x509.BasicConstraints(False, None)], [SHOPS], False),
    "by one that does not say so": ([], [SHOPS], False),
    "by one whose key is for signing other things": ([CA, SIGNS], [SHOPS], False),
    "for dialling alone": ([CA], [SHOPS, DIALS], False),
    "for a common name": ([CA], [], False),
}


@pytest.mark.parametrize("how", MADE)
def test_a_chain_is_checked_as_tls_does(how: str) -> None:
    above, below, holds = MADE[how]
    key, own = KEYS["ECDSA P-256"](), KEYS["ECDSA P-256"]()
    root, shop = bare("root", "root", key, key, *above), bare("shop", "root", key, own, *below)
    pem = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    hello = answer(Material(b"", shop.public_bytes(Encoding.PEM), pem))
    ours = material("bank")._replace(authority=root.public_bytes(Encoding.PEM))
    if holds:
        check_proof(hello, "shop", asked(), ours, frozenset())
    else:
        with pytest.raises(RefusedError, match="shop does not prove that it holds a certificate"):
            check_proof(hello, "shop", asked(), ours, frozenset())


def test_fingerprints_are_read_as_they_are_written() -> None:
    plain = fingerprint(leaf(material("shop")))
    colons = ":".join(plain[i : i + 2] for i in range(0, 64, 2)).upper()
    assert read_fingerprints([plain, colons]) == {plain}
    for wrong in ("", "sha1", plain[:-1], plain + "00"):
        with pytest.raises(ConfigError, match="is no fingerprint: expected the SHA-256 of a certificate"):
            read_fingerprints([wrong])
