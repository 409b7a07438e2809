"""An encrypted array in a message: new ciphertexts each time that it is sent, and the same bytes when a line
that was cut says them again."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Annotated

import numpy as np
import pytest
from pydantic import JsonValue

from protocols.arrays import Array
from protocols.hazmat.paillier import EncryptedArray, Fixed
from protocols.network import frames, outgoing
from protocols.party import Desk, Party
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message, Spec
from protocols.wire.transport import Envelope
from tests.protocols.hazmat.keys import small
from tests.support.network import bank_party, bounded, shop_party
from tests.support.proxy import Fate, Proxy, first

ROWS = 1000  # of 256 bytes each


class SealedSums(Message, reveals="encrypted sums: how many"):
    words: Annotated[Array, Spec("uint64", ("n", "w"))]
    header: dict[str, JsonValue]

    @classmethod
    def of(cls, array: EncryptedArray) -> SealedSums:
        words, header = array.dump()
        return cls(words=words, header=header)


def test_a_replay_says_the_same_bytes_and_sending_again_says_others(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[int, list[bytes]] = defaultdict(list)  # each time that a chunk of the bank's went out

    def chunk(number: int, envelope: Envelope, start: int, end: int) -> bytes:
        frame = frames.chunk(number, envelope, start, end)
        if envelope.sender == "bank":
            said[number].append(frame)
        return frame

    monkeypatch.setattr(outgoing, "chunk", chunk)
    one = small().encrypt(np.ones(1), Fixed(limit=10.0))
    stale = one[np.zeros(ROWS, np.int64)]  # one ciphertext many times, as long as it stays here
    assert not stale.fresh

    async def talk() -> list[SealedSums]:
        async with (
            shop_party() as shop,
            Proxy(shop.address, first(1, Fate(after=ROWS * 256 // 2))) as proxy,
            bank_party(proxy.address) as bank,
        ):
            sender, receiver = (Party(Desk(line.name, Ledger(line)), "talk") for line in (bank, shop))

            async def send() -> None:
                for _ in range(2):
                    await sender.send("shop", SealedSums.of(stale))

            async def take() -> list[SealedSums]:
                return [await receiver.recv("bank", SealedSums) for _ in range(2)]

            came, _ = await asyncio.gather(take(), send())
            assert proxy.connections == 2 and bank.retransmitted["shop"] > 0
            return came

    came = bounded(talk())
    assert any(len(times) > 1 for times in said.values())
    assert all(len(set(times)) == 1 for times in said.values())
    ciphertexts = {row.tobytes() for message in came for row in message.words}
    assert len(ciphertexts) == 2 * ROWS
    for message in came:
        np.testing.assert_array_equal(
            small().decrypt(small().load(message.words, message.header)), np.ones(ROWS)
        )
