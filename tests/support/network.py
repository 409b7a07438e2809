"""What the network's tests share: certificates, bounded runs, and a peer that breaks the rules."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from protocols.network.frames import Limits
from protocols.network.grpc import Grpc
from protocols.network.link import METHOD
from protocols.network.parties_pb2 import Frame, Hello
from protocols.network.tls import Credentials, Material
from protocols.service.certificates import new_authority, new_party, put
from protocols.wire.transport import Envelope
from tests.support.waiting import HANG

T = TypeVar("T")
HERE = "127.0.0.1:0"
SOON = Limits(patience=0.6, handshake=2.0)


@lru_cache(maxsize=1)
def trial() -> Path:
    """A folder with one authority for all tests of a process."""
    folder = Path(mkdtemp(prefix="vfl-trial-"))
    new_authority(folder)
    return folder


@lru_cache
def certified(party: str) -> Credentials:
    return new_party(trial(), trial(), party)


class Unchecked(Credentials):
    """Files that their own party does not look at before it dials."""

    def read(self, party: str) -> Material:
        return Material(*(path.read_bytes() for path in (self.authority, self.certificate, self.key)))


def unchecked(credentials: Credentials) -> Unchecked:
    return Unchecked(credentials.authority, credentials.certificate, credentials.key)


def issued(folder: Path, common: str, *extensions: x509.ExtensionType) -> Credentials:
    """The authority in `folder` certifies whoever it is, as they wish."""
    issuer = x509.load_pem_x509_certificate((folder / "authority.pem").read_bytes())
    issuer_key = load_pem_private_key((folder / "authority.key").read_bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, False)
    files = Path(mkdtemp(prefix="issued-", dir=folder))
    put(files / "own.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    put(files / "own.pem", builder.sign(issuer_key, SHA256()).public_bytes(Encoding.PEM), 0o644)
    return Credentials(folder / "authority.pem", files / "own.pem", files / "own.key")


def bounded(work: Coroutine[Any, Any, T], seconds: float = HANG) -> T:
    """Run `work`, which must end by itself within `seconds`."""

    async def run() -> T:
        async with asyncio.timeout(seconds):
            return await work

    return asyncio.run(run())


def party(name: str, book: dict[str, str | None], limits: Limits | None = None, **more: Any) -> Grpc:
    return Grpc(name, book, certified(name), limits=limits, **more)


def shop_party(limits: Limits | None = None) -> Grpc:
    """The one that is dialled."""
    return party("shop", {"bank": None, "shop": HERE}, limits)


def bank_party(address: str | None, limits: Limits | None = None) -> Grpc:
    """The one that dials."""
    return party("bank", {"bank": None, "shop": address}, limits)


def envelope(
    sender: str, receiver: str, body: bytes = b"body", sequence: int = 0, scope: str = "talk"
) -> Envelope:
    digest = hashlib.sha256(body).digest()
    return Envelope("job", sender, receiver, scope, sequence, "test.Word/1", 1, digest, body)


async def tell(sender: Grpc, receiver: Grpc, bodies: Sequence[bytes], scope: str = "talk") -> list[bytes]:
    """All `bodies` from one to the other; those that came."""

    async def send() -> None:
        for i, body in enumerate(bodies):
            await sender.deliver(envelope(sender.name, receiver.name, body, i, scope))

    async def take() -> list[bytes]:
        return [(await receiver.collect(receiver.name, sender.name, scope)).body for _ in bodies]

    return (await asyncio.gather(take(), send()))[0]


def hello(**changed: Any) -> bytes:
    said: dict[str, Any] = {"version": 1, "party": "bank", "peer": "shop", "session": b"r" * 16}
    raw: bytes = Frame(hello=Hello(**{**said, **changed})).SerializeToString()
    return raw


def dialling(address: str | None, credentials: Credentials | None, named: str = "shop") -> grpc.Channel:
    """A channel that knows nothing of parties."""
    options = [("grpc.ssl_target_name_override", named), ("grpc.enable_http_proxy", 0)]
    options.append(("grpc.use_local_subchannel_pool", 1))
    if credentials is None:
        return grpc.insecure_channel(address, options)
    files = (credentials.authority, credentials.key, credentials.certificate)
    secure = grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))
    return grpc.secure_channel(address, secure, options)


async def rogue(
    address: str | None, frames: Sequence[bytes], credentials: Credentials | None, named: str = "shop"
) -> tuple[str, str]:
    """Open a stream, say `frames`, and wait: the status and the reason that it ends with."""

    def speak() -> tuple[str, str]:
        with dialling(address, credentials, named) as channel:
            try:
                list(channel.stream_stream(METHOD)(iter(frames), timeout=HANG))
            except grpc.RpcError as error:
                return error.code().name, error.details()
        return "OK", ""

    return await asyncio.to_thread(speak)
