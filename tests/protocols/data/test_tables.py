"""From a table to arrays: as scikit-learn and pandas would, or a clear error that shows no cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from sklearn.preprocessing import StandardScaler

from protocols.arrays import Array
from protocols.data.tables import (
    Classes,
    Moments,
    Scaler,
    check_classes,
    column,
    encode_labels,
    features,
    labels,
    moments,
    numbers,
    own_table,
    split_target,
)
from protocols.errors import ConfigError, DataError
from protocols.wire.codec import decode, encode

_rows = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 30), st.integers(1, 4)),
    elements=st.floats(-1e6, 1e6).map(lambda v: round(v, 3)),
)


@given(_rows, st.data())
def test_combined_moments_are_the_pooled_standard_scaler(x: Array, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(x) - 1)), max_size=4)))
    parts = [part for part in np.split(x, cuts) if len(part)]
    ours = Scaler.combine([moments(part) for part in parts])
    pooled = StandardScaler().fit(x)
    assert np.allclose(ours.mean, pooled.mean_, rtol=1e-9, atol=1e-9)
    varies = np.ptp(x, axis=0) > 0
    assert np.allclose(ours.scale[varies], pooled.scale_[varies], rtol=1e-6)
    assert (ours.scale[~varies] == 1).all()
    assert ours(x).dtype == np.float32


@pytest.mark.parametrize("unit", [1e-18, 1e-9, 1.0, 1e9])
def test_a_column_is_standardised_whatever_its_unit(unit: float) -> None:
    x = np.random.default_rng(0).normal(size=(50, 1)) * unit
    assert np.allclose(Scaler.fit(x)(x), StandardScaler().fit_transform(x), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e8, 1e-15])
def test_a_constant_column_has_scale_one(value: float) -> None:
    parts = [moments(np.full((n, 1), value)) for n in (3, 7, 11)]
    assert Scaler.combine(parts).scale.tolist() == [1.0]


def test_moments_of_no_rows_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Moments(rows=0, mean=np.zeros(2), variance=np.zeros(2))
    with pytest.raises(ValidationError, match="variance has d = 3, elsewhere it is 2"):
        Moments(rows=1, mean=np.zeros(2), variance=np.zeros(3))


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([1, 2, 3]),
        pd.Series([1, 2, 3], dtype="Int64"),
        pd.Series([1, 2, 3], dtype="uint8"),
        pd.Series([1.0, 2.0, 3.0], dtype="Float32"),
        pd.Series([1, 2, 3], dtype="int64[pyarrow]"),
        pd.Series(pd.arrays.SparseArray([1.0, 2.0, 3.0])),
    ],
    ids=lambda s: str(s.dtype),
)
def test_numbers_of_any_kind_are_float64(values: pd.Series) -> None:
    x = features(pd.DataFrame({"a": values, "b": [True, False, True]}))
    assert x.dtype == np.float64 and x.tolist() == [[1, 1], [2, 0], [3, 1]]


def test_nullable_booleans_and_a_choice_of_columns() -> None:
    table = pd.DataFrame({"t": ["x", "y"], "b": pd.array([True, False], dtype="boolean"), "a": [3, 4]})
    assert features(table, ["a", "b"]).tolist() == [[3, 1], [4, 0]]
    assert features(table, ["b"]).tolist() == [[1], [0]]


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(["canary", "b", "c"]),
        pd.Series(["canary", "b", "c"], dtype="string"),
        pd.Series(["canary", "b", "c"], dtype="category"),
        pd.Series([1, 2, 3], dtype="category"),
        pd.Series([1, "canary", 3], dtype=object),
        pd.Series(pd.date_range("2020", periods=3)),
        pd.Series(pd.to_timedelta([1, 2, 3], unit="D")),
        pd.Series([1j, 2, 3]),
    ],
    ids=lambda s: str(s.dtype),
)
def test_what_is_no_number_is_named_with_its_dtype_and_a_fix(values: pd.Series) -> None:
    table = pd.DataFrame({"ok": [1, 2, 3], "odd": values, "odd too": values})
    with pytest.raises(DataError) as caught:
        features(table)
    said = str(caught.value)
    assert f"column 'odd' is {values.dtype}, expected numbers (and 1 more)" in said
    assert "get_dummies" in said and "canary" not in said


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([1.0, np.nan, -np.inf]),
        pd.Series([1, None, None], dtype="Int64"),
        pd.Series([True, None, None], dtype="boolean"),
        pd.Series([1.0, None, np.inf], dtype="float64[pyarrow]"),
    ],
    ids=lambda s: str(s.dtype),
)
def test_missing_and_infinite_cells_are_counted(values: pd.Series) -> None:
    with pytest.raises(
        DataError, match=r"'odd' has 2 missing or infinite values in 3 rows; fill or drop them"
    ):
        features(pd.DataFrame({"ok": [1, 2, 3], "odd": values}))


def test_missing_columns_and_empty_tables_are_errors_that_say_what_to_do() -> None:
    with pytest.raises(DataError, match=r"1 of 2 columns .* missing: \['y'\]; give the columns"):
        features(pd.DataFrame({"x": [1]}), ["x", "y"])
    with pytest.raises(DataError, match="0 rows, expected at least 1"):
        features(pd.DataFrame({"x": []}))
    with pytest.raises(DataError, match=r"no id column 'Id' in a table of 2 columns; did you mean 'ID'\?"):
        column(pd.DataFrame({"ID": [1], "x": [2]}), "Id", "id")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Series(["b", "a", "b"]), ["a", "b"]),
        (pd.Series(["b", "a", "b"], dtype="string"), ["a", "b"]),
        (pd.Series(["b", "a", "b"], dtype="category"), ["a", "b"]),
        (pd.Series([2, 1, 2]), [1, 2]),
        (pd.Series([2, 1, 2], dtype="Int64"), [1, 2]),
        (pd.Series([2.0, 1.0, 2.0]), [1, 2]),
        (pd.Series([2.0, 1.0, 2.0], dtype="Float64"), [1, 2]),
        (pd.Series([2, 1, 2], dtype="category"), [1, 2]),
        (pd.Series([True, False, True]), [False, True]),
        (pd.Series([True, False, True], dtype="boolean"), [False, True]),
        (pd.Series([np.int64(2), np.int64(1), np.int64(2)], dtype=object), [1, 2]),
        (pd.Series([np.str_("b"), np.str_("a"), "b"], dtype=object), ["a", "b"]),
    ],
    ids=lambda v: str(getattr(v, "dtype", "")),
)
def test_labels_of_any_kind_are_plain_values_that_the_wire_carries(
    values: pd.Series, expected: list[Any]
) -> None:
    found = labels(values)
    assert found == expected and [type(v) for v in found] == [type(v) for v in expected]
    back = decode(Classes, encode(Classes(labels=found))).labels
    assert back == found and [type(v) for v in back] == [type(v) for v in found]
    codes = encode_labels(values, back)
    assert codes.dtype == np.int64 and codes.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pd.Series([1, None, None]), "2 of 3 labels are missing; drop"),
        (pd.Series(["a", None]), "1 of 2 labels are missing"),
        (pd.Series([0.5, 1.0]), "is float64, not labels; use a regressor"),
        (pd.Series([np.inf, 1.0]), "not labels"),
        (pd.Series(pd.date_range("2020", periods=2)), "not labels"),
        (pd.Series(np.array(["2020", "2021"], dtype="datetime64[ns]")), "not labels"),
        (pd.Series(pd.to_timedelta([1, 2], unit="D")), "not labels"),
        (pd.Series([b"a", b"b"]), "not labels"),
        (pd.Series([1, "1"], dtype=object), "mixes types; make all labels"),
        (pd.Series([2, True], dtype=object), "mixes types"),
    ],
)
def test_what_are_no_labels_is_refused(values: pd.Series, said: str) -> None:
    with pytest.raises(DataError, match=rf"^target 'y'.*{said}"):
        labels(values.rename("y"))


def test_labels_that_were_not_there_before_are_counted() -> None:
    with pytest.raises(DataError, match="target 'y': 2 of 3 labels are not among the 2 classes; fit with"):
        encode_labels(pd.Series(["a", "canary", None], name="y"), ["a", "b"])
    for found in ([], ["a"]):
        with pytest.raises(DataError, match=f"has {len(found)} class, expected at least 2"):
            check_classes(found)
    check_classes([0, 1])


def test_a_target_is_split_at_the_first_dot() -> None:
    assert split_target("bank.default.payment", iter(["shop", "bank"])) == ("bank", "default.payment")
    for bad in ("default", "bank.", "."):
        with pytest.raises(ConfigError, match="target"):
            split_target(bad, ["bank"])
    with pytest.raises(ConfigError, match=r"no party 'bnk'; parties are shop, bank; did you mean 'bank'\?"):
        split_target("bnk.x", iter(["shop", "bank"]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["low", "high"], "target 'y' is .*, not numbers; use a classifier"),
        ([1.0, np.nan], "target 'y': 1 of 2 values are missing or infinite; drop those rows"),
        ([np.inf, np.nan], "target 'y': 2 of 2 values"),
    ],
)
def test_what_is_no_regression_target_is_refused(values: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        numbers(pd.Series(values, name="y"))


def test_an_id_that_is_the_index_is_found_there() -> None:
    table = pd.DataFrame({"id": [1, 2], "x": [3, 4]}).set_index("id")
    with pytest.raises(DataError, match=r"no id column 'id'.*it is the index, which reset_index\(\) makes"):
        column(table, "id", "id")


def test_a_regression_target_is_one_column_of_float64() -> None:
    y = numbers(pd.Series([1, 2], name="y"))
    assert y.dtype == np.float64 and y.shape == (2, 1)
    with pytest.raises(DataError, match="target 'y': 1 of 2 values are missing"):
        numbers(pd.Series([1.0, np.nan], name="y"))


def test_a_column_whose_variance_overflows_is_named_by_its_place() -> None:
    with pytest.raises(DataError, match="column 2 of 2 is too large to standardise"):
        moments(np.array([[1.0, 1e300], [2.0, -1e300]]))


# Names of columns.


BAD_NAMES: list[tuple[list[Any] | pd.Index, str]] = [
    (pd.MultiIndex.from_tuples([("id", ""), ("z", "mean"), ("y", "")]), "2 levels of names, .*join them"),
    (["id", "z", "z"], "two columns are called 'z'; rename one"),
    (["id", 1, "1"], "two columns are called '1'"),
    (["id", "z", ""], "column 3 of 3 has no name, .*to_csv"),
    (["Unnamed: 0", "id", "y"], "column 1 of 3 has no name"),
    (["id", " ", "y"], "column 2 of 3 has no name"),
    (["id", ("z", "mean"), "y"], "name of column 2 of 3 is a tuple, expected text or a whole number"),
    (["id", pd.Timestamp("2024-01-01"), "y"], "is a Timestamp"),
    (["id", float("nan"), "y"], "is a float"),
    (["id", 1.5, "y"], "is a float"),
    (["id", None, "y"], "is a NoneType|is a float"),
    (["id", True, "y"], "is a bool"),
    (["id", "\ud800", "y"], "is not Unicode text"),
]


@pytest.mark.parametrize(("names", "said"), BAD_NAMES, ids=[said for _, said in BAD_NAMES])
def test_names_that_no_method_could_carry_are_refused(names: Any, said: str) -> None:
    table = pd.DataFrame([[1, 0.5, 0], [2, 1.5, 1]])
    table.columns = names if isinstance(names, pd.Index) else pd.Index(names, dtype=object)
    with pytest.raises(DataError, match=said):
        own_table(table)


def test_names_that_numpy_made_become_plain_and_others_stay() -> None:
    table = pd.DataFrame([[1, 0.5]], columns=pd.Index([np.int64(3), np.str_("a")], dtype=object))
    plain = own_table(table)
    assert [type(name) for name in plain.columns] == [int, str] and list(plain.columns) == [3, "a"]
    for same in (pd.DataFrame({"a": [1]}), pd.DataFrame([[1, 2]])):
        assert own_table(same) is same
