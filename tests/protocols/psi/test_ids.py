"""Canonical ids: what is one id, what is none, and errors that show no id."""

from __future__ import annotations

import decimal
import traceback
import unicodedata
import uuid
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError, DataError
from protocols.psi.ids import canonical

NUMBERS = [3, 0, 120, 7]
INTEGERS = ["int8", "int16", "int64", "uint8", "uint64", "Int8", "Int64", "UInt32", "object", "category"]
NAMES = ["é", "b", "", "A7 "]
UUID = "extension<arrow.uuid>" if hasattr(pa, "uuid") else "mixed values"  # which Arrow 16 has not
TEXTS = ["object", "str", "string[python]", "string[pyarrow]", "category"]


def column(values: list[Any]) -> pd.Series:
    return pd.Series(values, dtype=object)


def arrow(values: list[Any], kind: pa.DataType) -> pd.Series:
    return pd.Series(values, dtype=pd.ArrowDtype(kind))


@pytest.mark.parametrize(
    "ids",
    [
        *(pd.Series(NUMBERS, dtype=d) for d in INTEGERS),
        arrow(NUMBERS, pa.int32()),
        arrow(NUMBERS, pa.dictionary(pa.int8(), pa.int64())),
        pd.Index(NUMBERS),
        pd.Series(NUMBERS, index=[9, 9, 9, 9]),
    ],
    ids=lambda s: f"{type(s).__name__}-{s.dtype}",
)
def test_an_integer_is_its_decimal_whatever_its_width(ids: pd.Series) -> None:
    got = canonical(ids)
    assert (got.tag, got.values.to_pylist()) == ("int", [b"3", b"0", b"120", b"7"])
    assert got.rows.tolist() == [0, 1, 2, 3] and got.rows.dtype == np.int64 and got.repeats == 0


@pytest.mark.parametrize(
    "ids",
    [
        *(pd.Series(NAMES, dtype=d) for d in TEXTS),
        arrow(NAMES, pa.string()),
        arrow(NAMES, pa.large_string()),
        arrow(NAMES, pa.string_view()),
        pd.concat([arrow(NAMES[:2], pa.string()), arrow(NAMES[2:], pa.string())]),
        arrow(NAMES, pa.dictionary(pa.int8(), pa.string())),
        pd.Index(NAMES),
        column([unicodedata.normalize("NFD", name) for name in NAMES]),
    ],
    ids=lambda s: type(s).__name__,
)
def test_text_is_its_composed_form_in_utf8(ids: pd.Series) -> None:
    got = canonical(ids)
    assert (got.tag, got.values.to_pylist()) == ("str", ["é".encode(), b"b", b"", b"A7 "])


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True))
def test_integers_keep_their_order_and_sign(numbers: list[int]) -> None:
    got = canonical(pd.Series(numbers, dtype="int64"))
    assert got.values.to_pylist() == [b"%d" % number for number in numbers]


@given(st.lists(st.text()))
def test_first_keeps_the_first_row_of_each_name(names: list[str]) -> None:
    forms = [unicodedata.normalize("NFC", name).encode() for name in names]
    got = canonical(column(names), duplicates="first")
    assert got.values.to_pylist() == list(dict.fromkeys(forms))
    assert got.rows.tolist() == [forms.index(form) for form in dict.fromkeys(forms)]
    assert got.repeats == len(names) - len(got)


def test_unsigned_integers_reach_their_top() -> None:
    assert canonical(pd.Series([2**64 - 1], dtype="uint64")).values.to_pylist() == [b"18446744073709551615"]


def test_an_integer_is_not_its_text() -> None:
    assert canonical(pd.Series([1])).tag != canonical(pd.Series(["1"])).tag


def test_an_empty_column_has_no_ids() -> None:
    for ids in (column([]), pd.Series([], dtype="int64"), pd.Index([])):
        got = canonical(ids)
        assert len(got) == 0 and got.rows.shape == (0,)


def test_duplicates_are_counted_and_refused() -> None:
    with pytest.raises(DataError, match='^2 of 5 ids are duplicated; pass duplicates="first" or aggregate'):
        canonical(pd.Series([71, 72, 71, 71, 73]))


def test_two_forms_of_one_name_are_a_duplicate() -> None:
    with pytest.raises(DataError, match="1 of 2 ids are duplicated"):
        canonical(pd.Series(["é", unicodedata.normalize("NFD", "é")]))


@pytest.mark.parametrize(
    "ids",
    [
        column([71, None, 72]),
        column(["a", float("nan"), "b"]),
        pd.Series([71, None, 72], dtype="Int64"),
        pd.Series(["a", None, "b"]),
        pd.Series([71, None, 72], dtype=object).astype("category"),
        arrow(["a", None, "b"], pa.string()),
        column([71, pd.NA, 72]),
    ],
    ids=lambda s: str(s.dtype),
)
def test_missing_ids_are_counted_and_refused(ids: pd.Series) -> None:
    with pytest.raises(DataError, match="^1 of 3 ids are missing; drop those rows"):
        canonical(ids)


def test_a_column_of_nothing_is_missing() -> None:
    with pytest.raises(DataError, match="^2 of 2 ids are missing"):
        canonical(column([None, None]))


SECRET = "987654"


@pytest.mark.parametrize(
    ("ids", "got", "fix"),
    [
        (pd.Series([987654.0, 1.0]), "floats", "cast them to int: ids read as float usually had missing"),
        (pd.Series([987654.0, None]), "floats", "cast them to int"),
        (column([987654, 1.5]), "floats", "cast them to int"),
        (pd.Series([987654.0], dtype="Float64"), "floats", "cast them to int"),
        (pd.Series([True, False]), "booleans", "choose a column"),
        (column([b"987654"]), "bytes", "decode them to str"),
        (column([b"987654", "b"]), "bytes", "decode them to str"),
        (pd.to_datetime(pd.Series([987654], dtype="int64")), "dates or times", "format them as str"),
        (column([987654, "b"]), "mixed-integer values", "cast the whole column"),
        (column(["987654", 1.5]), "mixed values", "cast the whole column"),
        (column([True, 987654]), "mixed-integer values", "cast the whole column"),
        (pd.Series([987654 + 0j]), "complex128 values", "cast the whole column"),
        (column([{SECRET: 1}]), "nested values", "cast them to str"),
        (column([(987654, 1)]), "nested values", "cast them to str"),
        (column([decimal.Decimal(SECRET)]), r"decimal128\(6, 0\)", "cast them to str"),
        (column([uuid.UUID(int=987654)]), UUID, "cast the"),
        (column([987654 * 10**20]), "integers beyond 64 bits", "cast them to str"),
        (column([f"{SECRET}\ud800"]), "text that is not valid Unicode", "read the file again"),
        (pd.MultiIndex.from_tuples([(987654, 1)]), "an index of several levels", "join the levels"),
    ],
)
def test_other_types_are_refused_by_name_and_show_no_id(ids: pd.Series, got: str, fix: str) -> None:
    with pytest.raises(DataError, match=f"^ids should be integers or text, got {got}; {fix}") as refused:
        canonical(ids)
    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_repr_shows_no_id() -> None:
    assert repr(canonical(pd.Series([987654]))) == "CanonicalIds(tag='int', repeats=0)"


def test_forms_of_one_text_fold_alike() -> None:
    """Marks of alpha in either order are one text; folding the lower one first would set them apart."""
    alike = ["\u03b1\u0345\u0301", "\u03b1\u0301\u0345", "\u1fb4", "\u0391\u0301\u0399"]
    assert canonical(pd.Series(alike), normalise="casefold", duplicates="first").repeats == 3


def test_duplicates_takes_one_of_two_words() -> None:
    with pytest.raises(ConfigError, match="duplicates should be"):
        canonical(pd.Series([1]), duplicates="last")  # type: ignore[arg-type]
