"""Laws of split finding: nothing that is tried by hand gains more, and ties go to what comes first."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.trees.splits import Columns, Found, Rules, best_splits
from protocols.trees.sums import histogram, padded, quantised

FREE = np.array([-np.inf]), np.array([np.inf])


def columns(
    counts: list[int], categorical: list[bool] | None = None, monotone: list[int] | None = None
) -> Columns:
    zeros = [0] * len(counts)
    return Columns(
        np.array(counts), np.array(categorical or zeros, bool), np.array(monotone or zeros, np.int8)
    )


def found(codes: Any, g: Any, h: Any, known: Columns, rules: Rules, bounds: Any = FREE) -> Found:
    """The best split of one node with all rows. codes: (columns, rows)."""
    q = quantised(g[:, None], h[:, None], 16)
    flat = histogram(codes, q.values, known.counts)
    sums = padded(flat[None], known.counts, int(known.counts.max()))[:, :, 1:]
    totals, low_high = q.values.sum(axis=0)[None], bounds
    return best_splits(sums, totals, q.bits[None], known, rules, *low_high)


def gain_of(left: Any, g: Any, h: Any, rules: Rules) -> float:
    """By the formula, from the rows."""
    q = quantised(g[:, None], h[:, None], 16)
    g, h = (np.ldexp(q.values[:, at].astype(float), -q.bits[at]) for at in (0, 1))
    parts = [(g[side].sum(), h[side].sum()) for side in (left, ~left)]
    if not left.any() or left.all() or min(h for _, h in parts) < rules.min_child_weight:
        return -np.inf
    score = sum(a * a / (b + rules.l2) for a, b in parts)
    return float(score - g.sum() ** 2 / (h.sum() + rules.l2))


def ranked(codes: Any, bins: int, g: Any, h: Any, l2: float) -> Any:
    """The place of each bin but 0 among all, by gradient over hessian; those without rows last."""
    q = quantised(g[:, None], h[:, None], 16)
    g, h = (np.ldexp(q.values[:, at].astype(float), -q.bits[at]) for at in (0, 1))
    rows = [codes == bin_ for bin_ in range(1, bins + 1)]
    ratio = [g[here].sum() / (h[here].sum() + l2) if here.any() else np.inf for here in rows]
    return np.argsort(np.argsort(ratio, kind="stable"))


@given(data=st.data(), rows=st.integers(2, 40), seed=st.integers(0, 2**32))
@settings(max_examples=80)
def test_no_split_gains_more(data: st.DataObject, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    categorical = data.draw(st.lists(st.booleans(), min_size=len(counts), max_size=len(counts)))
    codes = np.stack([rng.integers(0, count + 1, rows) for count in counts]).astype(np.uint8)
    g, h = rng.normal(size=rows), rng.uniform(0.1, 1, rows)
    exact = data.draw(st.booleans())  # whether the best of all sets of categories is one of those tried
    least, l2 = (0.0, 0.0) if exact else (0.3, data.draw(st.sampled_from([0.0, 1.0])))
    rules = Rules(l2=l2, min_child_weight=least)
    one = found(codes, g, h, columns(counts, categorical), rules)
    best = most = 0.0
    for column, bins in enumerate(counts):
        rank = ranked(codes[column], bins, g, h, l2) if categorical[column] else np.arange(bins)
        for mask in [rank <= at for at in range(bins)]:
            for missing in (False, True):
                best = max(best, gain_of(np.array([missing, *mask])[codes[column]], g, h, rules))
        for subset in product([False, True], repeat=bins + 1) if categorical[column] else ():
            most = max(most, gain_of(np.array(subset)[codes[column]], g, h, rules))
    if exact:
        best = max(best, most)
    assert one.gain[0] == pytest.approx(best, rel=1e-9, abs=1e-9)
    if one.gain[0]:
        chosen = one.left[0][codes[one.column[0]]]
        assert gain_of(chosen, g, h, rules) == pytest.approx(one.gain[0])


def test_of_equal_splits_the_first_column_and_bin_is_taken() -> None:
    codes = np.array([[1, 1, 3, 3], [1, 1, 2, 2]], np.uint8)
    g, h = np.array([1.0, 1, -1, -1]), np.ones(4)
    one = found(codes, g, h, columns([3, 2]), Rules())
    assert one.column[0] == 0 and one.left[0].tolist() == [True, True, False, False]
    one = found(codes[::-1], g, h, columns([2, 3]), Rules())
    assert one.column[0] == 0


def test_where_nothing_is_missing_it_goes_with_the_heavier_child() -> None:
    g, h = np.array([1.0, -1, -1]), np.ones(3)
    for codes, way in (([1, 2, 2], False), ([2, 1, 1], True)):
        one = found(np.array([codes], np.uint8), g, h, columns([2]), Rules())
        assert one.left[0, 0] == way


def test_missing_values_go_where_they_help() -> None:
    codes = np.array([[0, 0, 1, 1, 2, 2]], np.uint8)
    for sign, way in ((1.0, True), (-1.0, False)):
        g = np.array([sign, sign, 1, 1, -1, -1])
        assert found(codes, g, np.ones(6), columns([2]), Rules()).left[0].tolist() == [way, True, False]


def test_a_split_of_missing_values_alone_is_one() -> None:
    codes = np.array([[0, 0, 1, 1]], np.uint8)
    one = found(codes, np.array([1.0, 1, -1, -1]), np.ones(4), columns([1]), Rules())
    assert one.gain[0] > 0 and one.left[0].tolist() == [False, True]


def test_categories_without_rows_go_where_missing_values_go() -> None:
    codes = np.array([[1, 1, 1, 3]], np.uint8)
    one = found(codes, np.array([1.0, 1, 1, -1]), np.ones(4), columns([3], [True]), Rules(l2=0.0))
    assert one.left[0, 2] == one.left[0, 0]


def test_small_children_are_not_made() -> None:
    codes = np.array([[1, 2, 2, 2]], np.uint8)
    g, h = np.array([5.0, -1, -1, -1]), np.full(4, 0.25)
    assert found(codes, g, h, columns([2]), Rules(min_child_weight=0.25)).gain[0] > 0
    assert found(codes, g, h, columns([2]), Rules(min_child_weight=0.3)).gain[0] == 0
    leaf = Rules(min_child_weight=0, min_samples_leaf=2)
    assert found(codes, g, h, columns([2]), leaf).gain[0] == 0
    assert found(codes, g, h, columns([2]), Rules(min_gain=100.0)).gain[0] == 0


def test_equal_rows_are_not_split() -> None:
    codes = np.array([[1, 2, 1, 2]], np.uint8)
    assert (
        found(codes, np.full(4, 0.1), np.full(4, 0.3), columns([2]), Rules(min_child_weight=0)).gain[0] == 0
    )


@pytest.mark.parametrize("way", [1, -1])
def test_a_monotone_column_splits_one_way_and_bounds_what_is_below(way: int) -> None:
    codes = np.array([[1, 1, 2, 2]], np.uint8)
    g, h = np.array([1.0, 1, -1, -1]), np.ones(4)  # the value rises from bin 1 to bin 2
    one = found(codes, g, h, columns([2], monotone=[way]), Rules(l2=0.0))
    assert (one.gain[0] > 0) == (way == 1)
    if way == 1:
        assert one.high[0].tolist() == [0.0, np.inf] and one.low[0].tolist() == [-np.inf, 0.0]
    held = found(codes, g, h, columns([2], monotone=[1]), Rules(l2=0.0), (np.array([-0.5]), np.array([0.5])))
    assert (
        held.high[0].tolist() == [0.0, 0.5]
        and held.gain[0] < found(codes, g, h, columns([2]), Rules(l2=0)).gain[0]
    )


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_constraint_is_about_what_is_missing(way: int, sign: float) -> None:
    codes = np.array([[1, 2, 0, 0]], np.uint8)  # and no row has bin 3
    g, h = sign * np.array([1.0, 1, -1, -1]), np.ones(4)
    one = found(codes, g, h, columns([3], monotone=[way]), Rules(l2=0.0))
    assert one.gain[0] == pytest.approx(4.0) and one.left[0].tolist() == [False, True, True, True]
    assert one.low[0].tolist() == [-np.inf] * 2 and one.high[0].tolist() == [np.inf] * 2


def test_columns_without_bins_are_never_split() -> None:
    codes = np.zeros((2, 4), np.uint8)
    assert found(codes, np.array([1.0, 1, -1, -1]), np.ones(4), columns([0, 0]), Rules()).gain[0] == 0


@given(
    seed=st.integers(0, 2**32), rows=st.integers(1, 30), bits=st.integers(4, 24), outputs=st.integers(1, 3)
)
def test_quantised_numbers_are_near_and_hessians_never_0(
    seed: int, rows: int, bits: int, outputs: int
) -> None:
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(rows, outputs)) * 10.0 ** rng.integers(-9, 9)
    h = rng.uniform(0, 1, (rows, outputs)) * (rng.random((rows, outputs)) < 0.7)
    q = quantised(g, h, bits)
    assert np.abs(q.values).max() <= 2**bits and (q.values[:, -1] == 1).all()
    back = np.ldexp(q.values[:, :-1].astype(float), -q.bits[:-1]).reshape(rows, outputs, 2)
    assert np.abs(back[..., 0] - g).max() <= np.abs(g).max() * 2.0**-bits
    assert (q.values[:, 1:-1:2] >= 1).all()
    most = np.where(h.max(axis=0) > 0, h.max(axis=0), 1.0)  # of each output
    assert (np.abs(back[..., 1] - h) <= most * 2.0 ** (1 - bits)).all()


def test_sums_that_would_not_be_exact_are_refused() -> None:
    with pytest.raises(Exception, match="not exact"):
        histogram(np.ones((1, 2), np.uint8), np.full((2, 1), 2**52), np.array([1]))
