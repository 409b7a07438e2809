"""What a party that does not follow the protocol reads: what the documents say, and no more.

Each attack read everything before sums had windows, masks were uniform and keys came with a proof.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gmpy2 import invert, mpz, powmod
from phe import PaillierPublicKey

from protocols.arrays import Array
from protocols.errors import ProtocolError
from protocols.hazmat.paillier import EncryptedArray, Paillier, PaillierKey
from protocols.hazmat.paillier.array import Key
from protocols.hazmat.paillier.words import to_ints, to_words
from tests.protocols.hazmat.test_proof import dividing
from tests.vfl.linear.tables import SMALL
from vfl.linear.gradient import MaskedGradient, OpenedGradient, SealedResiduals, Sealer, Sums, chunks
from vfl.linear.losses import LOSSES
from vfl.linear.whole import WINDOW, Factors, Rounded, Told


class Liar(Sums):
    """A feature party that asks for labels in the place of sums: as many at a time as a plaintext holds."""

    def __init__(self, key: Key, x: Factors, values: tuple[int, int], each: int) -> None:
        """values: what is told of a row of either label. each: how many labels to put into a plaintext."""
        super().__init__(key, x, 1)
        self._values, self._each = values, each
        self._rows: list[EncryptedArray] = []

    def add(self, sealed: SealedResiduals, part: slice) -> None:
        super().add(sealed, part)
        self._rows.append(self._key.load(sealed.words, dict(sealed.header)))

    def masked(self) -> MaskedGradient:
        assert self._sum is not None
        low, high = self._values
        key, n = self._key, mpz(self._key.modulus)
        # (r - low) / (high - low) modulo n is the label; the k-th of a plaintext is shifted to bit k.
        unit, columns = int(invert(high - low, n)), self._x.shape[1]
        rows = np.concatenate([part.rows for part in self._rows])
        index = np.arange(columns * self._each) % len(rows)
        powers = key.engine.power(rows[index], [2 ** (k % self._each) * unit % n for k in range(len(index))])
        group = np.repeat(np.arange(columns), self._each)[None]
        summed = key.engine.bucket_products(powers, group, columns)[0]
        less = key.engine.wrap([-low * unit * (2**self._each - 1)] * columns)
        self._sum = EncryptedArray(key, key.engine.multiply(summed, less), self._sum.layout)
        return super().masked()

    def labels(self, message: OpenedGradient) -> list[int]:
        """What can be told of each returned number: its bits."""
        words = [int(word) for word in message.words.ravel()]
        assert max(words) < 2**WINDOW  # and no bit more has come back
        return [
            (word - mask >> k) & 1
            for word, mask in zip(words, self._masks, strict=True)
            for k in range(min(self._each, WINDOW))
        ]


def asked(told: Rounded, columns: int, each: int) -> list[int]:
    """The labels that a liar with so many columns reads from one gradient of two classes."""
    own = SMALL.new_key()
    low, high = sorted(
        {int(value) for value in told.ints.ravel()}, reverse=True
    )  # residuals of 0 are positive
    sealer, rows = Sealer(own, told, len(told.ints)), len(told.ints)
    liar = Liar(
        own.public(), Factors.of(np.random.default_rng(0).normal(size=(rows, columns))), (low, high), each
    )
    for part in chunks(rows):
        liar.add(sealer.seal(part), part)
    return liar.labels(sealer.open(liar.masked()))


def start_of(mode: str, y: Array) -> Rounded:
    """What the label party tells first: residuals of the best intercept, or its share of them."""
    if mode == "hidden":
        return Told(y.shape).rest(LOSSES["taylor"].residual(np.zeros(y.shape), y))
    loss = LOSSES["binomial"]
    z = np.full(y.shape, loss.start(y, np.ones(len(y)))[0])
    return Told(y.shape).rest(loss.residual(z, y))


@pytest.mark.parametrize("mode", ["exact", "hidden"])
@pytest.mark.parametrize(("rows", "columns"), [(400, 4), (400, 8), (200, 5), (340, 34)])
def test_a_feature_party_reads_so_many_labels_a_number(mode: str, rows: int, columns: int) -> None:
    """34 for each that it returns, all right, and nothing of the others: as the guide says.

    It was 128, so all of them at the 10 to 20 rows a column that there have to be.
    """
    assert WINDOW == 34  # as the guide and the message say
    y = (np.random.default_rng(rows).random((rows, 1)) < 0.4) * 1.0
    told = start_of(mode, y)
    few = asked(told, columns, WINDOW)
    order = np.arange(columns * WINDOW) % rows
    assert len(few) == WINDOW * columns and few == y[order, 0].tolist()
    # Whoever puts more into a plaintext has no more of it.
    many = asked(told, columns, 4 * WINDOW)
    assert len(many) == WINDOW * columns


def huge(x: Array) -> tuple[Array, Array, Callable[[], Array]]:
    """A label party seals numbers far too large: what it reads of rows, these rows, what the owner learns."""
    own, rows, width, low = SMALL.new_key(), 6, 50, 150
    told, factors = Rounded.of(np.full((len(x), 1), 0.5)), Factors.of(x)
    sealer, sums = Sealer(own, told, len(x)), Sums(own.public(), factors, 1)
    sealed = sealer.seal(slice(0, len(x)))
    array = own.load(sealed.words, dict(sealed.header))
    more = [2 ** (low + width * k) if k < rows else 0 for k in range(len(x))]
    words = own.words(own.engine.multiply(array.rows, own.engine.wrap(more)), array.layout)
    sums.add(sealed.model_copy(update={"words": words}), slice(0, len(x)))
    masked = sums.masked()
    plain = own.engine.decrypt(own.load(masked.words, dict(masked.header)).rows)
    half = 2 ** (width - 1)
    read = [
        [((value >> low + width * k) + half) % 2**width - half for value in plain]  # signed
        for k in range(rows)
    ]
    return np.array(read, dtype=object), factors.ints[:rows], lambda: sums.opened(sealer.open(masked))


class Narrow:
    """Draws masks of 128 bits, which is 64 more than sums once had."""

    randbelow = staticmethod(lambda n: secrets.randbits(128))


def test_a_label_party_reads_no_row_by_sealing_large_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """And changes nothing: what it puts above the window does not come back."""
    x = np.random.default_rng(0).normal(size=(100, 4))
    read, rows, gradient = huge(x)
    assert not (abs(read - rows) <= 1).any()
    np.testing.assert_allclose(gradient(), x.T @ np.full((100, 1), 0.5), atol=1e-3)
    monkeypatch.setattr("protocols.hazmat.paillier.veils.secrets", Narrow)
    read, rows, _ = huge(x)
    assert (abs(read - rows) <= 1).all()  # all six rows, but for a borrow


def test_a_key_with_room_beside_its_plaintexts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it taken, its owner would read rows in a part of ciphertexts that no mask reaches."""
    p = 1_048_583  # a prime, and no small factor
    q = dividing(p, 512)
    n, settings = p * q, Paillier(500, small_key=True)
    raw = n.to_bytes(-(-n.bit_length() // 8), "big") * 8
    with pytest.raises(ProtocolError, match="without a valid proof that n is prime to phi"):
        settings.key_from_bytes(raw)
    monkeypatch.setattr("protocols.hazmat.paillier.keys.holds", lambda n, proof: True)
    public = settings.key_from_bytes(raw)
    x = np.random.default_rng(0).normal(size=(40, 3))
    assert read_beside(public, p, q, x) == (Factors.of(x).ints[0] % p).tolist()


def read_beside(public: PaillierKey, p: int, q: int, x: Array) -> list[int]:
    """Row 0 modulo p, by a label party that multiplies its ciphertext by a number of order p modulo q^2."""
    n, told = public.modulus, Rounded.of(np.full((len(x), 1), 0.5))
    mine = PaillierKey(PaillierPublicKey(n), small_key=True)
    beside = powmod(3, q * (q - 1) // p, q * q)
    number = (1 + (beside - 1) * p * p * invert(p * p, q * q)) % (n * n)  # 1 modulo p^2
    sealed = Sealer(mine, told, len(x)).seal(slice(0, len(x)))
    ciphertexts = to_ints(sealed.words)
    ciphertexts[0] = ciphertexts[0] * number % (n * n)
    sums = Sums(public, Factors.of(x), 1)
    words = to_words(ciphertexts, sealed.words.shape[1])
    sums.add(sealed.model_copy(update={"words": words}), slice(0, len(x)))
    power, found = q * (q - 1) // p, []
    unit = powmod(beside, power, q * q)
    logarithms: dict[Any, int] = {}
    one = mpz(1)
    for k in range(p):
        logarithms[one] = k
        one = one * unit % (q * q)
    for c in to_ints(sums.masked().words):
        found.append(logarithms[powmod(c, power, q * q)])
    return found
