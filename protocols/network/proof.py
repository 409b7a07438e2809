"""Which certificate a dialled party holds: its name is read as ours is there, and a revoked one is refused.

gRPC shows a server its client's certificate, but not the other way round, and to the client a name may stand
in the server's as a URI, an e-mail address or the common name. A dialler therefore asks the party it dials to
sign, with the key of the certificate it holds now, a challenge, both sessions and the dialler's own
certificate. Whoever stands in between, with a stolen key that was revoked or a certificate that has the name
in another place, cannot answer: it holds no key for that DNS name, and the party itself signs for the
certificate of whoever dials it, which is not the one that was asked about.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store

from protocols.errors import ConfigError
from protocols.network.frames import RefusedError
from protocols.network.parties_pb2 import Hello
from protocols.network.tls import Material, names

CHALLENGE = 16  # bytes
_MOST = 8  # certificates from a party's to the authority's
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_PSS = padding.PSS(padding.MGF1(SHA256()), 32)


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate, in hex."""
    return hashlib.sha256(der).hexdigest()


def read_fingerprints(revoked: Iterable[str]) -> frozenset[str]:
    """Read fingerprints as openssl writes them, or in plain hex. Raises ConfigError for anything else."""
    found = {said: said.replace(":", "").strip().lower() for said in revoked}
    for said, plain in found.items():
        if not _FINGERPRINT.fullmatch(plain):
            raise ConfigError(
                f"{said[:80]!r} is no fingerprint: expected the SHA-256 of a certificate, 64 hex digits, as "
                "from openssl x509 -noout -fingerprint -sha256 -in FILE"
            )
    return frozenset(found.values())


def refuse_revoked(der: bytes, owner: str, revoked: frozenset[str], by: str) -> None:
    """Raise RefusedError if the certificate is one of `revoked`."""
    found = fingerprint(der)
    if found in revoked:
        raise RefusedError(
            "PERMISSION_DENIED",
            f"the certificate of {owner} with fingerprint {found[:16]}... is revoked in the book of {by}; "
            f"{owner} needs a new one",
        )


def leaf(material: Material) -> bytes:
    """A party's own certificate, DER."""
    return chain(material)[0]


def chain(material: Material) -> list[bytes]:
    """A party's certificate and those up to the authority's, DER."""
    found = x509.load_pem_x509_certificates(material.certificate)
    return [certificate.public_bytes(Encoding.DER) for certificate in found]


def prove(material: Material, asked: Hello, session: bytes, certificate: bytes) -> dict[str, Any]:
    """Make the proof that the answering Hello adds. certificate: the dialler's, DER."""
    key = load_pem_private_key(material.key, None)
    said = _said(asked.challenge, asked.session, session, certificate)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        proof = key.sign(said, ec.ECDSA(SHA256()))
    elif isinstance(key, rsa.RSAPrivateKey):
        proof = key.sign(said, _PSS, SHA256())
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        proof = key.sign(said)
    else:
        raise RefusedError("FAILED_PRECONDITION", "the key is not ECDSA, RSA or Ed25519, and proves nothing")
    return {"certificates": chain(material), "proof": proof}


def check_proof(hello: Hello, peer: str, asked: Hello, material: Material, revoked: frozenset[str]) -> None:
    """Raise RefusedError unless `hello` proves that its sender holds a certificate of the name `peer`, from
    our authority, valid now and not revoked. asked: our Hello, with the challenge. material: our own."""
    if not 0 < len(hello.certificates) <= _MOST or not hello.proof:
        raise RefusedError("UNAUTHENTICATED", f"{peer} does not prove which certificate it holds")
    refuse_revoked(hello.certificates[0], peer, revoked, asked.party)
    said = _said(asked.challenge, asked.session, hello.session, leaf(material))
    try:
        held = [x509.load_der_x509_certificate(der) for der in hello.certificates]
        _verify(held, material)
        if peer not in names(held[0]):
            raise ValueError
        _check_signature(held[0], hello.proof, said)
    except Exception:  # a library has many for what is no certificate, and no common one
        raise RefusedError(
            "PERMISSION_DENIED", f"{peer} does not prove that it holds a certificate of that name, valid now"
        ) from None


def _said(challenge: bytes, dialler: bytes, dialled: bytes, certificate: bytes) -> bytes:
    parts = (b"vfl.parties.v1 proof\0", challenge, dialler, dialled, hashlib.sha256(certificate).digest())
    return b"".join(parts)


def _verify(held: Sequence[x509.Certificate], material: Material) -> None:
    """Refuse a chain that TLS would refuse for its signatures, its dates, or who may certify for what.

    Browsers demand more, which an authority made with openssl lacks, so that is not checked.
    """
    any_, optional = ExtensionPolicy.permit_all(), Criticality.AGNOSTIC
    issuers = any_.require_present(x509.BasicConstraints, optional, None)  # the library reads it itself
    issuers = issuers.may_be_present(x509.KeyUsage, optional, _certifies)
    owners = any_.require_present(x509.SubjectAlternativeName, optional, None)
    owners = owners.may_be_present(x509.ExtendedKeyUsage, optional, _serves)
    policy = PolicyBuilder().extension_policies(ca_policy=issuers, ee_policy=owners)
    policy = policy.store(Store(x509.load_pem_x509_certificates(material.authority)))
    policy.build_client_verifier().verify(held[0], list(held[1:]))


def _certifies(policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError


def _serves(policy: Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    if usage is not None and ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        raise ValueError


def _check_signature(certificate: x509.Certificate, proof: bytes, said: bytes) -> None:
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(proof, said, ec.ECDSA(SHA256()))
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(proof, said, _PSS, SHA256())
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(proof, said)
    else:
        raise InvalidSignature
