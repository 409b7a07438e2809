"""Masks that hide what each party holds in the sum of what all hold.

Takes part: every feature party, where there are two or more. Each pair agrees on a key that the label party
does not see; of the two, the first in the roster adds the same pseudorandom numbers that the other takes
away, modulo 2^64. The label party learns the sum, and nothing of its parts while at least two feature
parties keep their keys to themselves (Bonawitz et al. 2017, section 4, without drop-outs).

Assumes X25519 (RFC 7748) and AES-256-CTR as a generator of pseudorandom numbers. Keys are new in every run,
and each key's stream is used once: both ends take from it in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.arrays import Array, Arrays
from protocols.errors import DataError, ProtocolError
from protocols.party import Coordinator, Party
from protocols.sums.plain import Pooled
from protocols.wire.message import Message, Spec

FRACTION = 44  # bits: scores are off by at most 2^-45 of the unit that both ends agree on
_MOST = 1 << 62


class MaskPoint(Message, reveals="nothing of its data: a point of this run, from which masks are made"):
    """One end of a pair's key agreement."""

    point: Annotated[Array, Spec("uint8", (32,))]


class Masks:
    """The masks that one feature party adds to its scores; none where it is the only one."""

    def __init__(self, me: str, keys: dict[str, bytes], order: Sequence[str]) -> None:
        self._sums = [order.index(me) < order.index(peer) for peer in keys]
        self._streams = [Cipher(AES(key), CTR(bytes(16))).encryptor() for key in keys.values()]
        self._parties = len(keys) + 1

    def __call__(self, scores: Array, exponent: int = 0) -> Array:
        """`scores` (n, outputs) float64 in fixed point and under the masks, int64 (n, outputs).

        exponent: of the power of two that they are multiples of 2^-44 of; everybody has to take the same.
        """
        limit = _MOST / self._parties * 2.0 ** (exponent - FRACTION)
        if not (np.abs(scores) < limit).all():  # NaN too
            raise DataError(
                "training diverged, or rows are far from those of training: scores should be below "
                f"{limit:.0f}; lower the learning rate, raise l2, or scale columns or counts down"
            )
        total = np.rint(np.ldexp(scores, FRACTION - exponent)).astype(np.int64).view(np.uint64)
        for adds, stream in zip(self._sums, self._streams, strict=True):
            mask = np.frombuffer(stream.update(bytes(8 * total.size)), "<u8").reshape(total.shape)
            total = total + mask if adds else total - mask
        return total.view(np.int64)


async def agree(me: Party, peers: Sequence[str]) -> Masks:
    """Make this feature party's masks by agreeing on a key with every other feature party in `peers`."""
    others = [peer for peer in peers if peer != me.name]
    private = X25519PrivateKey.generate()
    own = private.public_key().public_bytes_raw()
    for peer in others:
        await me.send(peer, MaskPoint(point=np.frombuffer(own, np.uint8)))
    keys = {}
    for peer in others:
        point = (await me.recv(peer, MaskPoint)).point.tobytes()
        salt = b"".join(sorted([own, point]))
        try:
            secret = private.exchange(X25519PublicKey.from_public_bytes(point))
        except (ValueError, UnsupportedAlgorithm):  # a point of small order
            raise ProtocolError(f"{MaskPoint.kind} from {peer} is no point of the curve") from None
        keys[peer] = HKDF(SHA256(), 32, salt=salt, info=b"vfl-toolkit linear masks 1").derive(secret)
    return Masks(me.name, keys, peers)


def total(parts: Mapping[str, Array], shape: tuple[int, int], exponent: int = 0) -> Array:
    """Add up all feature parties' masked scores to float64 (n, outputs); the masks cancel.

    exponent: as each of them took it. ProtocolError for what has another shape, naming whose it is.
    """
    summed = np.zeros(shape, np.uint64)
    for peer, part in parts.items():
        if part.shape != shape:
            raise ProtocolError(f"scores from {peer} should have shape {list(shape)}, got {list(part.shape)}")
        summed = summed + part.view(np.uint64)
    return np.ldexp(summed.view(np.int64).astype(np.float64), exponent - FRACTION)


class MaskedPart(Message, reveals="nothing but the sum over all that gave: each one's part is under masks"):
    """One party's masked part of a sum, in fixed point."""

    words: Annotated[Array, Spec("int64", ("n", 1))]


class Masked:
    """A sum that hides every part from the taker. All parties must stay to its end.

    All of `peers` give, and list one another in the same order. There must be two or more, since a single
    part would be the sum itself. A value times its weight
    is at most 2^18 over the number of parties, to 2^-45.
    """

    hides = True

    @property
    def speaks(self) -> tuple[type[Message], ...]:
        """The messages this sum sends: the keys' points and the parts."""
        return MaskPoint, MaskedPart

    async def give(self, at: Party, to: str, peers: Sequence[str], value: Arrays, weight: float) -> None:
        """Agree on masks with every other of `peers`, then one message to `to`."""
        masks = await agree(at, peers)
        flat = np.concatenate([*(a.ravel().astype(np.float64) * weight for a in value.values()), [weight]])
        await at.send(to, MaskedPart(words=await at.compute(masks, flat[:, None], cost=2.0 * flat.size)))

    async def take(self, at: Coordinator, of: Sequence[str], like: Arrays) -> Pooled:
        """Take the mean, in the dtypes of `like`; whole numbers are rounded."""
        came = await at.gather(MaskedPart, of=of)
        words = {party: said.words for party, said in came.items()}
        shape = like.size + 1, 1
        flat = (await at.compute(total, words, shape, cost=2.0 * len(words) * like.size))[:, 0]
        mean, start = {}, 0
        for name, array in like.items():
            found = (flat[start : start + array.size] / flat[-1]).reshape(array.shape)
            mean[name] = (found if array.dtype.kind == "f" else np.rint(found)).astype(array.dtype)
            start += array.size
        return Pooled(Arrays(mean), float(flat[-1]))
