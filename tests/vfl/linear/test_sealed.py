"""What is hidden stays hidden, and what comes out is exact."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.arrays import Array
from protocols.errors import DataError, ProtocolError
from protocols.federation import Run, simulate
from protocols.hazmat.paillier import Fixed, Plain
from protocols.hazmat.paillier.array import Key
from protocols.hazmat.paillier.words import to_ints
from protocols.party import Coordinator
from protocols.wire.codec import decode, encode
from tests.vfl.linear.tables import SMALL
from vfl.linear.block import Columns
from vfl.linear.masks import FRACTION, Masks, agree, total
from vfl.linear.sealed import (
    RESIDUAL,
    MaskedGradient,
    OpenedGradient,
    Scale,
    SealedResiduals,
    Sealer,
    Sums,
    chunks,
)

ENOUGH = 1000  # rows, for any number of columns here


@cache
def key(plain: bool) -> Key:
    return Plain().new_key() if plain else SMALL.new_key()


def sealed(own: Key, x: Columns, r: Array, taken: Key | None = None) -> tuple[Array, Scale, Run]:
    """X^T r as the owner of the columns learns it."""
    scale = Scale()
    ints = scale.round(r)

    async def bank(me: Coordinator) -> None:
        await Sealer(own, ints, scale.exponent, ENOUGH).serve(me, ["shop"])

    async def shop(me: Coordinator) -> Array:
        return await Sums(taken or own.public(), x, slice(0, len(r)), r.shape[1]).ask(me, "bank")

    run = simulate({"bank": bank, "shop": shop})
    return run.results["shop"], scale, run


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5)),
    large=st.sampled_from([1e-9, 0.3, 1.0, 7.0, 1e12]),
    plain=st.booleans(),
)
def test_a_gradient_is_the_exact_sum(
    seed: int, shape: tuple[int, int, int], large: float, plain: bool
) -> None:
    rows, columns, outputs = shape
    rng = np.random.default_rng(seed)
    x = Columns.of(rng.normal(size=(rows, columns)) * rng.choice([1e-3, 1.0, 1e5], columns), rows)
    r = rng.uniform(-large, large, (rows, outputs))
    found, scale, _ = sealed(key(plain), x, r)
    ints = scale.round(r)
    # In Python's integers, which no float rounds.
    exact = [
        [sum(int(a) * int(b) for a, b in zip(column, residual, strict=True)) for residual in ints.T]
        for column in x.ints.T
    ]
    whole = np.array([[float(value) for value in row] for row in exact])
    np.testing.assert_array_equal(found, np.ldexp(whole, scale.exponent - 64) * x.limits[:, None])
    assert np.abs(scale.value(ints) - r).max() <= 2.0 ** (scale.exponent - RESIDUAL - 1)


def test_a_mask_is_wide_and_new_for_every_sum() -> None:
    x = Columns.of(np.ones((50, 3)), 50)
    ints = Scale().round(np.full((50, 1), 0.5))
    sealer, hidden = Sealer(key(False), ints, 0, ENOUGH), []
    for _ in range(2):
        sums = Sums(key(False).public(), x, slice(0, 50), 1)
        for part in chunks(50):
            sums.add(sealer.seal(part), part)
        masked = sums.masked()
        plain = key(False).decrypt(key(False).load(masked.words, dict(masked.header)))
        bits = (50 << 64).bit_length() + 64
        assert 2 ** (bits - 24) < max(plain.ravel().tolist()) < 2 ** (bits + 1)
        opened = sealer.open(masked)
        hidden.append(to_ints(opened.words.reshape(-1, opened.words.shape[-1])))
        np.testing.assert_array_equal(sums.opened(opened), np.full((3, 1), 25.0))
    assert len({*hidden[0], *hidden[1]}) == 6


def test_a_long_batch_is_sent_in_parts() -> None:
    x = Columns.of(np.random.default_rng(0).normal(size=(5000, 2)), 5000)
    r = np.random.default_rng(1).uniform(-1, 1, (5000, 1))
    found, _, run = sealed(key(True), x, r)
    np.testing.assert_allclose(found, x.values.T @ r, rtol=1e-9)
    assert [e.kind for e in run.ledger].count("vfl.SealedResiduals/1") == 3
    assert run.ledger.chain_length("") == 3


def test_another_key_is_refused() -> None:
    x = Columns.of(np.ones((20, 1)), 20)
    with pytest.raises(ProtocolError, match="shop: an encrypted array came under another key"):
        sealed(key(False), x, np.ones((20, 1)), SMALL.new_key().public())


def test_what_cannot_be_a_gradient_is_refused() -> None:
    x = Columns.of(np.ones((20, 2)), 20)
    sealer, sums = Sealer(key(True), np.ones((20, 1)), 0, 20), Sums(key(True).public(), x, slice(0, 20), 1)
    with pytest.raises(ProtocolError, match=r"should be \[20, 1\], got \[9, 1\]"):
        sums.add(sealer.seal(slice(0, 9)), slice(0, 20))
    sums.add(sealer.seal(slice(0, 20)), slice(0, 20))
    masked = sums.masked()
    opened = sealer.open(masked)
    with pytest.raises(ProtocolError, match="should be .2, 1, 2., got"):
        sums.opened(OpenedGradient(words=opened.words[:1]))
    changed = opened.words.copy()
    changed[0, 0, 1] ^= 1 << 40
    with pytest.raises(ProtocolError, match="sums that such residuals cannot have"):
        sums.opened(OpenedGradient(words=changed))
    two = key(True).encrypt(np.ones((2, 3)), sealer_range(), terms=1)
    words, header = two.dump()
    with pytest.raises(ProtocolError, match=r"should be \(columns, 1\), got \[2, 3\]"):
        sealer.open(MaskedGradient(words=words, header=header))
    three = key(True).encrypt(np.ones((3, 1)), sealer_range(), terms=1)
    words, header = three.dump()
    with pytest.raises(DataError, match="a batch of 20 rows is too small for 3 columns"):
        sealer.open(MaskedGradient(words=words, header=header))
    with pytest.raises(DataError, match="residuals are not finite"):
        Scale().round(np.array([[np.inf]]))
    with pytest.raises(DataError, match="residuals are not finite, or too large"):
        Scale().round(np.array([[1e300]]))
    beyond = sealer.seal(slice(0, 20)).model_copy(update={"exponent": 900})
    with pytest.raises(ProtocolError, match="field exponent: .* less than or equal to 400"):
        decode(SealedResiduals, encode(beyond))


@pytest.mark.parametrize("changed", [{"bound": "0x1"}, {"bits": 7}, {"bound": hex(1 << 60)}])
def test_residuals_of_another_range_are_refused(changed: dict[str, Any]) -> None:
    """A mask is as wide as the bound of what it hides, which is the receiver's to know."""
    x = Columns.of(np.ones((20, 2)), 20)
    sealed = Sealer(key(True), np.ones((20, 1)), 0, 20).seal(slice(0, 20))
    forged = sealed.model_copy(update={"header": {**sealed.header, **changed}})
    sums = Sums(key(True).public(), x, slice(0, 20), 1)
    with pytest.raises(ProtocolError, match="should be whole numbers of at most 40 bits"):
        sums.add(forged, slice(0, 20))


def sealer_range() -> Fixed:
    return Fixed(8.0)


def masks(parties: Sequence[str]) -> dict[str, Masks]:
    async def role(me: Coordinator) -> Masks:
        return await agree(me, parties)

    return dict(simulate(dict.fromkeys(parties, role)).results)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_masks_cancel_in_the_sum_and_hide_its_parts(count: int) -> None:
    parties = [f"p{i}" for i in range(count)]
    rng = np.random.default_rng(count)
    own = masks(parties)
    for _ in range(2):  # both ends go on in one stream
        scores = {party: rng.normal(size=(500, 2)) for party in parties}
        said = {party: own[party](scores[party]) for party in parties}
        np.testing.assert_allclose(total(said, (500, 2)), sum(scores.values()), atol=count * 2.0**-FRACTION)
        for party in parties if count > 1 else ():
            # Uniform over 64 bits: half of the signs, and nothing of the score.
            high = said[party] / 2.0**63
            assert abs(high.mean()) < 0.1 and abs(high.std() - 1 / np.sqrt(3)) < 0.05
            assert abs(np.corrcoef(high.ravel(), scores[party].ravel())[0, 1]) < 0.15


def test_scores_that_no_training_gives_are_refused() -> None:
    own = masks(["shop"])["shop"]
    for wrong in (np.nan, np.inf, 1e6):
        with pytest.raises(DataError, match="training diverged, or .*: scores should be below 262144"):
            own(np.array([[wrong]]))
    with pytest.raises(ProtocolError, match=r"scores from shop should have shape \[2, 1\], got \[1, 1\]"):
        total({"shop": np.zeros((1, 1), np.int64)}, (2, 1))


def test_large_scores_have_a_unit_of_their_own() -> None:
    own = masks(["shop", "telco"])
    scores = {"shop": np.array([[1e9], [-3.0]]), "telco": np.array([[-2e9], [5.0]])}
    said = {party: own[party](z, 20) for party, z in scores.items()}
    np.testing.assert_allclose(total(said, (2, 1), 20), [[-1e9], [2.0]], atol=2.0 ** (20 - FRACTION))
    with pytest.raises(DataError, match="scores should be below 137438953472"):
        own["shop"](np.array([[2e11]]), 20)
