"""What the network's tests share: certificates, bounded runs, and a peer that breaks the rules."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

import grpc

from protocols.certs import new_authority, new_party
from protocols.wire.frames import Limits
from protocols.wire.link import METHOD
from protocols.wire.parties_pb2 import Frame, Hello
from protocols.wire.remote import Grpc
from protocols.wire.tls import Credentials
from protocols.wire.transport import Envelope
from tests.waiting import HANG

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
