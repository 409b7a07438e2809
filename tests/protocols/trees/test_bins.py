"""Laws of bins: values keep their order, and what was not there in training is missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import DataError
from protocols.trees.bins import Bins, check_columns, fit_all, fit_bins

numbers = st.one_of(st.floats(allow_nan=True, allow_infinity=False), st.integers(-5, 5).map(float))


@given(values=st.lists(numbers, min_size=1, max_size=60), most=st.integers(2, 9))
def test_bins_keep_the_order_of_values(values: list[float], most: int) -> None:
    column = pd.Series(values, dtype=np.float64)
    bins = fit_bins(column, most)
    codes = bins(column)
    there = ~column.isna().to_numpy()
    assert (codes[~there] == 0).all() and (codes[there] >= 1).all()
    assert codes.max(initial=0) <= bins.count <= most
    x, c = column.to_numpy()[there], codes[there]
    order = np.argsort(x, kind="stable")
    assert (np.diff(c[order].astype(int)) >= 0).all()
    if there.any() and len(np.unique(x)) <= most:  # a bin for each value
        assert len(np.unique(c)) == len(np.unique(x)) == bins.count


def test_bins_hold_about_equally_many_rows() -> None:
    column = pd.Series(np.random.default_rng(0).lognormal(size=10_000))
    bins = fit_bins(column, 32)
    sizes = np.bincount(bins(column), minlength=33)[1:]
    assert bins.count == 32 and sizes.min() > 290 and sizes.max() < 340


def test_a_frequent_value_leaves_bins_for_the_others() -> None:
    column = pd.Series([0.0] * 900 + list(np.linspace(1, 2, 100)))
    codes = fit_bins(column, 10)(column)
    assert (codes[:900] == 1).all() and codes[900:].min() == 2


def test_bins_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=500), "c": rng.choice(list("abcdefgh"), 500)})
    a, b = fit_all(table, 5), fit_all(table.sample(frac=1, random_state=1), 5)
    assert np.array_equal(np.asarray(a[0].thresholds), np.asarray(b[0].thresholds))
    assert a[1].categories == b[1].categories and np.array_equal(
        np.asarray(a[1].codes), np.asarray(b[1].codes)
    )


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["b", "a", None, "b"], dtype=object),
        pd.Series(["b", "a", None, "b"]),
        pd.Series(["b", "a", None, "b"], dtype="category"),
        pd.Series([True, False, None, True], dtype="boolean"),
        pd.Series([7, 3, None, 7], dtype=object).astype("category"),
    ],
    ids=["object", "text", "category", "boolean", "whole numbers as categories"],
)
def test_categories_have_a_bin_each_and_what_is_unknown_is_missing(column: pd.Series) -> None:
    bins = fit_bins(column, 32)
    assert bins.is_categorical and bins.count == 2
    assert bins(column).tolist() == [2, 1, 0, 2]
    assert bins(pd.Series([column[0], "z", None, "unseen"], dtype=object)).tolist() == [2, 0, 0, 0]


def test_truth_values_are_categories_without_gaps() -> None:
    bins = fit_bins(pd.Series([True, False]), 32)
    assert bins(pd.Series([False, True])).tolist() == [1, 2]


def test_rare_categories_share_a_bin() -> None:
    column = pd.Series(list("aaaabbbcd"))
    bins = fit_bins(column, 3)
    assert bins.count == 3
    assert bins(pd.Series(list("abcd"))).tolist() == [1, 2, 3, 3]


@pytest.mark.parametrize("large", [1e308, 5e-324])
def test_the_middle_of_extreme_numbers_lies_between(large: float) -> None:
    column = pd.Series([-large, large, 0.0])
    assert fit_bins(column, 9)(column).tolist() == [1, 3, 2]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pd.Series([1.0, np.inf]), "'x' has 1 infinite values in 2 rows"),
        (pd.Series(pd.to_datetime(["2020-01-01", "2020-01-02"])), "'x' is datetime64"),
        (pd.Series([(1,), (2,)], dtype=object), "'x' holds values of type tuple"),
    ],
)
def test_what_cannot_be_divided_is_refused(column: pd.Series, said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit_bins(column.rename("x"), 32)


def test_numbers_that_became_text_are_refused() -> None:
    bins = fit_bins(pd.Series([1.0, 2.0], name="x"), 32)
    with pytest.raises(DataError, match="'x' is .*, and was numbers in training"):
        bins(pd.Series(["1"]))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([1.0, 1.0], "one and the same value"),
        (["a", "a"], "one and the same value"),
        ([np.nan, np.nan], "no value in any row"),
        ([None, None], "no value in any row"),
    ],
)
def test_columns_that_tell_no_rows_apart_are_refused(column: list[object], said: str) -> None:
    table = pd.DataFrame({"good": [1, 2], "secret": pd.Series(column)})
    with pytest.raises(DataError, match=f"'secret' has {said}.*; drop it") as caught:
        check_columns(table)
    assert "secret" not in caught.value.told and "1 of 2 columns" in caught.value.told


def test_one_value_and_gaps_tell_rows_apart() -> None:
    check_columns(pd.DataFrame({"x": [1.0, np.nan], "y": ["a", None]}))


def test_no_value_is_in_a_repr() -> None:
    bins = fit_bins(pd.Series(["secret", "other"]), 3)
    assert "secret" not in repr(bins) and isinstance(bins, Bins)


TEXT, WHOLE = pd.Series(["7", "9", None], name="x"), pd.Series(pd.Categorical([7, 9, None]), name="x")


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (TEXT, pd.Series([7, 9]), "holds numbers, and held text"),
        (TEXT, pd.Series(pd.to_datetime(["2020-01-01"])), "holds Timestamp, and held text"),
        (WHOLE, pd.Series(["7", "9"]), "holds text, and held numbers"),
    ],
)
def test_categories_that_became_another_kind_are_refused(
    before: pd.Series, now: pd.Series, said: str
) -> None:
    bins = fit_bins(before, 32)
    for check in (bins, bins.check):
        with pytest.raises(DataError, match=f"'x' {said} in training; convert it"):
            check(now)


def test_categories_of_the_same_kind_are_found_however_they_are_stored() -> None:
    whole, text = fit_bins(WHOLE, 32), fit_bins(TEXT, 32)
    for column in ([7, 9], [7.0, 9.0], pd.array([7, 9], "Int64"), pd.Categorical([7, 9])):
        assert whole(pd.Series(column)).tolist() == [1, 2]
    assert text(pd.Series(["8", None])).tolist() == text(pd.Series([None, np.nan])).tolist() == [0, 0]


def test_cells_that_cannot_be_counted_are_refused() -> None:
    table = pd.DataFrame({"x": pd.Series([["a"], ["b"]], dtype=object)})
    with pytest.raises(DataError, match="'x' holds values of type list"):
        check_columns(table)
