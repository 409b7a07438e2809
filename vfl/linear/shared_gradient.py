"""Gradients of residuals of which every party has a share; who learns what is told in `hidden`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from protocols.arrays import Array
from protocols.hazmat.paillier.array import Key
from protocols.party import Party
from protocols.wire.message import Message
from vfl.linear.gradient import MaskedGradient, OpenedGradient, SealedResiduals, Sealer, Sums, chunks, priced
from vfl.linear.parameters import VerticalLinear
from vfl.linear.whole import Factors, Rounded


class ShareKey(Message, reveals="its public key"):
    """Of one party, for the shares that it will send."""

    key: bytes


@dataclass(frozen=True)
class Mesh:
    """One party's lines to all others: its own key, and the public ones of theirs, in roster order."""

    own: Key = field(repr=False)
    others: dict[str, Key] = field(repr=False)

    async def gradient(self, at: Party, x: Factors, share: Rounded) -> Array:
        """X^T of the sum of everybody's shares, (d, 1) float64. share: (b, 1), this party's."""
        rows = len(share.ints)
        sealer = Sealer(self.own, share, rows)
        sums = {peer: Sums(key, x, 1) for peer, key in self.others.items()}
        for part in chunks(rows):  # in turns: nobody sends all it has before it takes what came
            cost = priced(self.own, paillier_encrypt=part.stop - part.start)
            sealed = await at.compute(sealer.seal, part, cost=cost)
            for peer in self.others:
                await at.send(peer, sealed)
            for peer, summed in sums.items():
                came = await at.recv(peer, SealedResiduals)
                await at.compute(summed.add, came, part, cost=summed.adding(part))
        for peer, summed in sums.items():
            await at.send(peer, await at.compute(summed.masked, cost=summed.refreshing))
        for peer in self.others:
            masked = await at.recv(peer, MaskedGradient)
            cost = priced(self.own, paillier_decrypt=len(masked.words))
            await at.send(peer, await at.compute(sealer.open, masked, cost=cost))
        total = await at.compute(np.matmul, x.values.T, share.values, cost=2.0 * x.values.size)
        for peer, summed in sums.items():
            total = total + summed.opened(await at.recv(peer, OpenedGradient))
        return np.asarray(total)


async def meet(me: Party, peers: Sequence[str], own: Key, plan: VerticalLinear) -> Mesh:
    """Exchange public keys with all other parties."""
    said = ShareKey(key=await me.compute(own.to_bytes, cost=1e8))
    for peer in peers:
        await me.send(peer, said)
    came = {peer: (await me.recv(peer, ShareKey)).key for peer in peers}
    read = plan.keys.key_from_bytes
    return Mesh(own, {peer: await me.compute(read, key, cost=1e8) for peer, key in came.items()})
