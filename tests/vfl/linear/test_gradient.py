"""What is hidden stays hidden, and what comes out is exact."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.arrays import Array
from protocols.errors import DataError, ProtocolError
from protocols.federation import simulate
from protocols.hazmat.paillier import Plain
from protocols.hazmat.paillier.array import Key
from protocols.party import Coordinator, Run
from protocols.sums.masked import FRACTION, Masks, agree, total
from protocols.wire.codec import decode, encode
from tests.vfl.linear.tables import SMALL
from vfl.linear.gradient import MaskedGradient, OpenedGradient, SealedResiduals, Sealer, Sums, chunks
from vfl.linear.whole import CHECK, NOISE, WINDOW, Factors, Rounded, Told, detail, ranges

ENOUGH = 1000  # rows, for any number of columns here


@cache
def key(plain: bool) -> Key:
    return Plain().new_key() if plain else SMALL.new_key()


def sealed(own: Key, x: Array, r: Array, taken: Key | None = None) -> tuple[Array, Rounded, Run]:
    """X^T r as the owner of the columns learns it."""
    told = Rounded.of(r)

    async def bank(me: Coordinator) -> None:
        await Sealer(own, told, ENOUGH).serve(me, ["shop"])

    async def shop(me: Coordinator) -> Array:
        return await Sums(taken or own.public(), Factors.of(x), r.shape[1]).ask(me, "bank")

    run = simulate({"bank": bank, "shop": shop})
    return run.results["shop"], told, run


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 12)),
    large=st.sampled_from([1e-9, 0.3, 1.0, 7.0, 1e12]),
    plain=st.booleans(),
)
def test_a_gradient_is_the_exact_sum(
    seed: int, shape: tuple[int, int, int], large: float, plain: bool
) -> None:
    """Of columns and residuals as they are rounded, whatever the key and the masks."""
    rows, columns, outputs = shape
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)) * rng.choice([1e-3, 1.0, 1e5], columns)
    r = rng.uniform(-large, large, (rows, outputs))
    found, told, _ = sealed(key(plain), x, r)
    factors = Factors.of(x)
    # In Python's integers, which no float rounds.
    exact = [
        [sum(int(a) * int(b) for a, b in zip(column, residual, strict=True)) for residual in told.ints.T]
        for column in factors.ints.T
    ]
    unit = 2.0 ** (told.exponent - detail(rows))
    np.testing.assert_array_equal(found, np.array(exact) / factors.scale[:, None] * unit)
    assert np.abs(told.values - r).max() <= unit / 2
    assert np.abs(factors.ints / factors.scale - x).max(initial=0) <= (0.5000001 / factors.scale).max()


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 3000), tail=st.floats(0.1, 5.0))
def test_no_sum_needs_more_than_a_window(seed: int, rows: int, tail: float) -> None:
    """Not even of the column that the residuals themselves are: Cauchy and Schwarz."""
    rng = np.random.default_rng(seed)
    r = rng.standard_t(tail, (rows, 1))
    told, most = Rounded.of(r), 2 ** (WINDOW - 1 - CHECK)
    same = Factors.of(np.hstack([told.ints, -told.ints, np.ones((rows, 1)), np.zeros((rows, 1))]))
    sums = same.ints.T @ told.ints.astype(np.int64)
    assert np.abs(sums).max() <= most
    value, factor = ranges(rows)
    assert np.abs(told.ints).max() <= value.limit and np.abs(same.ints).max() <= factor.limit
    if rows > 100 and np.count_nonzero(told.ints) > 1:
        assert sums[0, 0] > most / 4  # and they do need it


def test_what_is_told_again_and_again_comes_ever_nearer() -> None:
    rng = np.random.default_rng(0)
    goal, told, off, heard = rng.normal(size=(500, 2)), Told((500, 2)), [], np.zeros((500, 2))
    for _ in range(5):
        heard = heard + told.rest(goal).values
        off.append(float(np.abs(goal - heard).max()))
    assert (heard == told.values).all() and off[0] < 0.05
    assert all(later < now / 30 for now, later in pairwise(off))


def gradient_of(x: Array, r: Array, own: Key) -> tuple[Sealer, Sums, MaskedGradient]:
    """As far as the owner of the columns has its masked sums."""
    sealer, sums = Sealer(own, Rounded.of(r), len(r)), Sums(own.public(), Factors.of(x), r.shape[1])
    for part in chunks(len(r)):
        sums.add(sealer.seal(part), part)
    return sealer, sums, sums.masked()


def test_a_mask_is_uniform_over_all_plaintexts_and_new_for_every_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def below(n: int) -> int:
        assert n == key(False).modulus
        drawn.append(secrets.randbelow(n))
        return drawn[-1]

    monkeypatch.setattr("protocols.hazmat.paillier.veils.secrets", SimpleNamespace(randbelow=below))
    r = np.full((50, 1), 0.5)
    for _ in range(2):
        drawn.clear()
        sealer, sums, masked = gradient_of(np.ones((50, 3)), r, key(False))
        n, array = key(False).modulus, key(False).load(masked.words, dict(masked.header))
        plain = [value % n for value in key(False).engine.decrypt(array.rows)]
        exact = int(Factors.of(np.ones((50, 3))).ints[:, 0] @ Rounded.of(r).ints[:, 0])
        assert plain == [(exact + mask) % n for mask in drawn] and len({*drawn}) == 3
        np.testing.assert_allclose(sums.opened(sealer.open(masked)), np.full((3, 1), 25.0), rtol=1e-5)


def test_a_long_batch_is_sent_in_parts() -> None:
    x = np.random.default_rng(0).normal(size=(5000, 2))
    r = np.random.default_rng(1).uniform(-1, 1, (5000, 1))
    found, told, run = sealed(key(True), x, r)
    np.testing.assert_allclose(found, x.T @ told.values, atol=1e-3)
    np.testing.assert_allclose(found, x.T @ r, atol=5000 * 2.0**-NOISE)
    assert [e.kind for e in run.ledger].count("vfl.SealedResiduals/1") == 3
    assert run.ledger.chain_length("") == 3


def test_another_key_is_refused() -> None:
    with pytest.raises(ProtocolError, match="shop: an encrypted array came under another key"):
        sealed(key(False), np.ones((20, 1)), np.ones((20, 1)), SMALL.new_key().public())


def test_what_cannot_be_a_gradient_is_refused() -> None:
    x, r = np.ones((20, 2)), np.ones((20, 1))
    sealer, sums = Sealer(key(True), Rounded.of(r), 20), Sums(key(True).public(), Factors.of(x), 1)
    with pytest.raises(ProtocolError, match=r"should be \[20, 1\], got \[9, 1\]"):
        sums.add(sealer.seal(slice(0, 9)), slice(0, 20))
    sealer, sums, masked = gradient_of(x, r, key(True))
    opened = sealer.open(masked)
    with pytest.raises(ProtocolError, match=r"should be \[2, 1\], got \[1, 1\]"):
        sums.opened(OpenedGradient(words=opened.words[:1]))
    with pytest.raises(ProtocolError, match="sums that such residuals cannot have"):
        sums.opened(OpenedGradient(words=opened.words ^ np.uint64(1 << WINDOW - 1)))
    with pytest.raises(ProtocolError, match=r"should be \(columns, 1\), got \[2, 3\]"):
        sealer.open(returned(np.ones((2, 3))))
    with pytest.raises(ProtocolError, match="should be packed as the residuals were"):
        sealer.open(returned(np.ones((2, 1)), terms=1))
    with pytest.raises(DataError, match="a batch of 20 rows is too small for 3 columns"):
        sealer.open(returned(np.ones((3, 1)), terms=20))
    with pytest.raises(DataError, match="residuals are not finite"):
        Rounded.of(np.array([[np.inf]]))
    with pytest.raises(DataError, match="residuals are not finite, or too large"):
        Rounded.of(np.array([[1e300]]))
    for exponent in (900, -900):
        beyond = sealer.seal(slice(0, 20)).model_copy(update={"exponent": exponent})
        with pytest.raises(
            ProtocolError, match="field exponent: .* less than or equal|greater than or equal"
        ):
            decode(SealedResiduals, encode(beyond))


def returned(x: Array, terms: int = 1) -> MaskedGradient:
    """What a party that makes things up sends in the place of its sums."""
    value, factor = ranges(20)
    words, header = key(True).encrypt(x, value, terms=terms, times=factor if terms > 1 else None).dump()
    return MaskedGradient(words=words, header=header)


@pytest.mark.parametrize(
    "changed", [{"bound": "0x1"}, {"bits": 7}, {"bound": hex(1 << 30)}, {"width": 12}, {"width": 60}]
)
def test_residuals_of_another_range_are_refused(changed: dict[str, Any]) -> None:
    """Whether a mask hides a sum, and is taken off again, hangs on that; it is the receiver's to know."""
    r = np.ones((20, 1))
    sealed = Sealer(key(True), Rounded.of(r), 20).seal(slice(0, 20))
    forged = sealed.model_copy(update={"header": {**sealed.header, **changed}})
    sums = Sums(key(True).public(), Factors.of(np.ones((20, 2))), 1)
    with pytest.raises(ProtocolError, match="should be whole numbers up to|with a header that no array has"):
        sums.add(forged, slice(0, 20))


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
