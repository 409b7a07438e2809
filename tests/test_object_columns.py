"""Numbers that are held as objects, for which one None is enough, are numbers with gaps, in every model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from horizontal import FedRegressor
from protocols.errors import DataError
from protocols.hazmat.paillier import Plain
from split import SplitRegressor
from vfl import VerticalGradientBoostingClassifier, VerticalLinearRegression, VerticalNetRegressor

RNG = np.random.default_rng(0)
WHOLE = pd.DataFrame(RNG.normal(size=(200, 4)), columns=list("abcd")).assign(id=np.arange(200))
WHOLE["y"] = (WHOLE["a"] + WHOLE["d"] > 0).astype(int)
WHOLE["z"] = WHOLE["a"] + WHOLE["d"]


def divided(table: pd.DataFrame, target: str) -> dict[str, pd.DataFrame]:
    return {"bank": table[["id", "a", "b", target]], "shop": table[["id", "c", "d"]]}


def test_trees_take_them_for_numbers_as_they_take_floats() -> None:
    gaps = WHOLE.assign(a=WHOLE["a"].where(WHOLE.index % 7 > 0), d=WHOLE["d"].where(WHOLE.index % 5 > 0))
    objects = gaps.astype({"a": object, "d": object})
    objects.loc[objects["a"].isna(), "a"] = None
    assert objects["a"].dtype == object and objects["a"].isna().any()
    how: dict[str, Any] = {"n_estimators": 5, "max_depth": 3, "encryption": Plain()}
    floats = VerticalGradientBoostingClassifier(**how).fit(divided(gaps, "y"), "bank.y", "id")
    same = VerticalGradientBoostingClassifier(**how).fit(divided(objects, "y"), "bank.y", "id")
    expected = floats.predict_proba(divided(gaps, "y"))
    pd.testing.assert_frame_equal(same.predict_proba(divided(objects, "y")), expected, check_exact=True)
    assert floats.score(divided(gaps, "y")) > 0.8
    # A column of numbers may have none at prediction: all of it is gaps.
    none = divided(gaps.assign(d=np.nan), "y")
    nobody = divided(gaps.assign(d=None), "y")
    assert nobody["shop"]["d"].dtype == object
    pd.testing.assert_frame_equal(floats.predict_proba(nobody), floats.predict_proba(none), check_exact=True)


KINDS: list[Any] = [FedRegressor, SplitRegressor, VerticalLinearRegression, VerticalNetRegressor]


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_numbers_take_them_too_and_name_a_gap(kind: Any) -> None:
    vertical = kind in (VerticalLinearRegression, VerticalNetRegressor)
    how: dict[str, Any] = {"security": "plain"} if kind is VerticalLinearRegression else {"random_state": 1}

    def said(table: pd.DataFrame) -> pd.Series:
        if vertical:
            data: Any = divided(table, "z")
            found: pd.Series = kind(**how).fit(data, "bank.z", "id").predict(data)
            return found
        data = {"n": table[["id", *"abcd", "z"]][:100], "s": table[["id", *"abcd", "z"]][100:]}
        found = kind(**how).fit(data, target="z", id="id").predict(table)
        return found

    objects = WHOLE.astype({"a": object, "z": object})
    pd.testing.assert_series_equal(said(objects), said(WHOLE), check_exact=True)
    with pytest.raises(DataError, match="column 'a' has 1 missing"):
        said(objects.assign(a=objects["a"].mask(objects.index == 0, None)))
