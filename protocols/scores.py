"""How well predictions fit the truth: what every estimator's `score` does.

Takes part: one party, alone, about rows that it knows. Nothing here leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import d2_tweedie_score, get_scorer, make_scorer

from protocols.arrays import Array
from protocols.errors import ConfigError, DataError

Scoring = str | Callable[..., float] | None
EXPLAINED: Callable[..., float] = make_scorer(d2_tweedie_score, power=1)  # of the deviance of counts


def placed(given: object, ids: pd.Series | None, index: pd.Index, what: str) -> pd.Series:
    """One value for each row of a table, in the table's order.

    given: a Series whose index has the name of the column `ids` is matched by id, and one with the labels of
    the table's own `index` by these. An index from 0 on, a list or an array is taken in the table's order.
    DataError for anything else: with an index that says neither, one would have to guess.
    """
    rows = len(index)
    if isinstance(given, pd.DataFrame) and given.shape[1] == 1:
        given = given.iloc[:, 0]
    if isinstance(given, pd.Series) and ids is not None and given.index.name == ids.name:
        if given.index.has_duplicates:
            raise DataError(f"{what}: an id stands twice in its index; keep one value for each id")
        missing = int((~ids.isin(given.index)).sum())
        if missing:
            raise DataError(
                f"{what}: {missing} of the table's {rows} ids are not in its index; add their values"
            )
        return pd.Series(given.reindex(ids).to_numpy())
    if isinstance(given, pd.Series) and not given.index.equals(index):
        unique = given.index.is_unique and index.is_unique
        if unique and len(given) == rows and index.isin(given.index).all():
            given = given.reindex(index)
        elif not given.index.equals(pd.RangeIndex(len(given))):
            by = f", nor named {ids.name!r}" if ids is not None else ""
            raise DataError(
                f"{what}: its index is neither the table's{by}, so it is not known which value is whose; "
                "pass to_numpy() to take the values in the table's order"
            )
    try:
        values = given if isinstance(given, pd.Series) else pd.Series(np.asarray(given).tolist())
    except (TypeError, ValueError):
        raise DataError(f"{what} should be one value for each row, got a {type(given).__name__}") from None
    if len(values) != rows:
        raise DataError(f"{what} has {len(values)} values, and the table {rows} rows; give one for each")
    return values.reset_index(drop=True)


def weights_of(given: object, rows: int) -> Array:
    """`given` as float64 (rows,). DataError unless each row has one, none is negative and some are not 0."""
    try:
        weights = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"sample_weight should be one number for each row, got a {type(given).__name__} that holds none"
        ) from None
    if weights.shape != (rows,):
        raise DataError(
            f"sample_weight should have one number for each of the table's {rows} rows, got shape "
            f"{list(weights.shape)}"
        )
    wrong = int(np.count_nonzero(~(np.isfinite(weights) & (weights >= 0))))
    if wrong or not weights.any():
        raise DataError(
            f"of {rows} sample weights {wrong} are negative, infinite or missing, and "
            f"{np.count_nonzero(weights)} are not 0; none should be the first, and some the second"
        )
    return weights


class _Answers(BaseEstimator):  # type: ignore[misc]  # sklearn has no stubs
    """What a model has answered, for scikit-learn's scorers: their X are positions of rows."""

    def __init__(self, response: Array, classes_: Array | None) -> None:
        self.response, self.classes_ = response, classes_

    def __sklearn_is_fitted__(self) -> bool:
        return True


class _Classes(ClassifierMixin, _Answers):  # type: ignore[misc]
    def predict(self, rows: Array) -> Array:
        assert self.classes_ is not None
        return np.asarray(self.classes_[self.response[rows].argmax(axis=1)])

    def predict_proba(self, rows: Array) -> Array:
        return np.asarray(self.response[rows])


class _Numbers(RegressorMixin, _Answers):  # type: ignore[misc]
    def predict(self, rows: Array) -> Array:
        return np.asarray(self.response[rows, 0])


def score(
    truth: pd.Series, response: Array, classes: Array | None, scoring: Scoring, weights: Array | None
) -> float:
    """How well `response` (n, classes) or (n, 1) fits the `truth` (n,), by one of scikit-learn's scorers.

    scoring: its name, as "roc_auc" or "neg_root_mean_squared_error", or a function of an estimator, X and y.
    DataError for a truth that is missing, of another kind, or of no row at all.
    """
    if not len(truth):
        raise DataError("there is no row to score: none is at all parties")
    if missing := int(truth.isna().sum()):
        raise DataError(f"the truth is missing for {missing} of {len(truth)} rows; leave them out")
    known = _labels(truth, classes) if classes is not None else _numbers(truth)
    try:
        scorer: Any = get_scorer(scoring) if isinstance(scoring, str) else scoring
    except ValueError:
        raise ConfigError(
            f"scoring={scoring!r} is none of scikit-learn's: sklearn.metrics.get_scorer_names() lists them"
        ) from None
    if not callable(scorer):
        raise ConfigError(f"scoring should be a name or a function, got {type(scoring).__name__}")
    answers = (_Classes if classes is not None else _Numbers)(response, classes)
    how = {} if weights is None else {"sample_weight": weights}
    try:
        return float(scorer(answers, np.arange(len(known)), known, **how))
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"scoring={scoring!r} does not fit these rows: {error}") from error


def _labels(truth: pd.Series, classes: Array) -> Array:
    codes = pd.Index(classes.tolist()).get_indexer(pd.Index(truth.tolist()))
    if (codes < 0).all():
        raise DataError(
            f"none of {len(truth)} labels is among the model's {len(classes)} classes; is y given in another "
            "type, or is it not the labels? Weights go by name: sample_weight="
        )
    if (codes >= 0).all():
        return np.asarray(classes[codes])
    return np.asarray(truth.infer_objects().to_numpy())  # labels that were never learnt count as mistakes


def _numbers(truth: pd.Series) -> Array:
    try:
        return np.asarray(truth.to_numpy(dtype=np.float64))
    except (TypeError, ValueError):
        raise DataError(f"the truth is {truth.dtype}, expected numbers") from None
