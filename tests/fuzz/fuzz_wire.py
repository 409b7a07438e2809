"""What comes from a peer: bodies of messages, frames of a line, and what a Hello proves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Annotated

import numpy as np

from protocols.arrays import Array, Arrays
from protocols.errors import ConfigError, ProtocolError
from protocols.network.frames import RefusedError, parse_hello
from protocols.network.parties_pb2 import Ack, Bye, Frame, Hello, Ping
from protocols.network.proof import CHALLENGE, check_proof, leaf, prove
from protocols.network.tls import Material
from protocols.wire.codec import decode, encode
from protocols.wire.message import Message, Spec
from tests.fuzz import target
from tests.protocols.network.test_line import envelope, hold_to_the_bounds, line, meet, small_chunks
from tests.support.network import certified


class Everything(Message, reveals="test: what it holds"):
    """One field of each kind that the wire carries."""

    array: Annotated[Array, Spec("float32", ("n", 2))]
    flags: Annotated[Array, Spec("bool", ("n",))]
    named: Arrays
    words: dict[str, str | int | None]
    raw: bytes
    share: float


def messages() -> list[bytes]:
    floats, flags = np.zeros((3, 2), np.float32), np.zeros(3, bool)
    named = Arrays({"w": np.ones((2, 2), np.float64), "b": np.zeros(0, np.int64)})
    said = Everything(
        array=floats, flags=flags, named=named, words={"a": "b", "n": None}, raw=b"raw", share=0.5
    )
    return [encode(said)]


@target(messages)
def body(raw: bytes) -> None:
    """Any bytes decode to a message, equal to itself sent on if it may be, or raise ProtocolError."""
    try:
        message = decode(Everything, raw, sender="bank", scope="fit")
    except ProtocolError:
        return
    with suppress(ConfigError):  # a mapping's keys that begin with '$' are read, and not written
        assert decode(Everything, encode(message)) == message


def split(raw: bytes) -> Iterator[bytes]:
    """Frames, each after one byte that says how long it is; so that a fuzzer can move and repeat them."""
    while raw:
        size = raw[0]
        yield raw[1 : 1 + size]
        raw = raw[1 + size :]


def joined(frames: Sequence[bytes]) -> bytes:
    return b"".join(bytes([len(raw)]) + raw for raw in frames)


def conversations() -> list[bytes]:
    with small_chunks():
        bank, shop = line("bank", "shop"), line("shop", "bank")
        opening = bank.hello()
        meet(bank, shop)
        for i, job in enumerate(("job", "", "job", "closed")):
            bank.out.queue(envelope(bytes(7 * i), i, job=job))
        frames = []
        while (raw := bank.next_frame()) is not None:
            frames.append(raw)
    signs = [Frame(ping=Ping(number=3)), Frame(ack=Ack(room=1 << 40)), Frame(bye=Bye())]
    said = [*frames, *(sign.SerializeToString() for sign in signs)]
    return [joined(said), joined([opening, *said])]


@target(conversations)
def stream(raw: bytes) -> None:
    """Any frames give envelopes or a RefusedError in bounded words, and no more is held than came."""
    frames = list(split(raw))
    greeted = not (frames and frames[0].startswith(b"\x0a"))  # it begins with a Hello of its own
    with small_chunks():
        hold_to_the_bounds(frames, greeted)


ASKED = Hello(party="bank", challenge=b"c" * CHALLENGE, session=b"b" * 16)


@lru_cache(maxsize=1)
def held() -> tuple[Material, Material]:
    return certified("bank").read("bank"), certified("shop").read("shop")


def proofs() -> list[bytes]:
    bank, shop = held()
    said = Hello(party="shop", session=b"s" * 16, **prove(shop, ASKED, b"s" * 16, leaf(bank)))
    raw: bytes = Frame(hello=said).SerializeToString()
    return [raw]


@target(proofs)
def hello(raw: bytes) -> None:
    """Any first frame is a Hello that proves what it should, or a RefusedError."""
    try:
        check_proof(parse_hello(raw), "shop", ASKED, held()[0], frozenset())
    except RefusedError as error:
        assert str(error).isprintable() and len(str(error)) < 700  # noqa: PT017
