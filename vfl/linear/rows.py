"""How the common rows become what the roles of a linear model compute with. No line is involved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from protocols.arrays import Array
from protocols.data.tables import Scaler, check_classes, encode_labels, features, labels
from protocols.errors import ConfigError, DataError
from protocols.party import Guard
from vfl.linear.columns import Columns, check_columns, check_rows
from vfl.linear.groups import check_groups
from vfl.linear.losses import LOSSES, Loss
from vfl.linear.parameters import VerticalLinear
from vfl.linear.parts import Classes, Target, standardised
from vfl.weights import check_weights


def prepared(
    x: Array, names: list[str], held_out: Array, plan: VerticalLinear, guard: Guard, *, learns: int
) -> tuple[Scaler, Columns]:
    """The common rows `x` (n, d) as an owner computes with them.

    learns: of how many columns this owner learns the gradient of residuals that are not its own. Raises
    DataError for columns without values to learn from, and for batches so small that it could find out
    residuals; PolicyError for columns in which few rows make the gradient.
    """
    order, training = split(len(x), held_out)
    used = x[order[:training]]
    if names:
        check_columns(used, names)
    check_rows(smallest_batch(training, plan), learns)
    if learns:
        check_groups(used, names, guard)
    plain = Scaler(np.zeros(x.shape[1]), np.ones(x.shape[1]))
    scaler = Scaler.fit(used) if plan.standardise else plain
    return scaler, Columns(standardised(scaler, x[order]), training, names)


def held_out_count(rows: int, plan: VerticalLinear) -> int:
    """How many of so many common rows are for validation."""
    if not plan.early_stopping:
        return 0
    return min(max(1, round(plan.validation_fraction * rows)), rows - 1)


def split(rows: int, held_out: Array) -> tuple[Array, int]:
    """The order of the common rows that has those held out last, and how many come before them."""
    left_out = np.zeros(rows, np.bool_)
    left_out[held_out] = True
    return np.argsort(left_out, kind="stable"), rows - int(left_out.sum())


def batches(order: Array, size: int) -> Iterator[Array]:
    """`order` in even parts of at least `size` rows, or of all."""
    yield from np.array_split(order, max(1, len(order) // size))


def smallest_batch(rows: int, plan: VerticalLinear) -> int:
    """Of so many rows of training: as many as are behind the statistic of the fewest."""
    if plan.solver == "lbfgs":
        return rows
    return rows // max(1, rows // plan.batch_size)


@dataclass(frozen=True)
class Answers:
    """The label party's side of the common rows, those of training first."""

    y: Array = field(repr=False)  # (n, outputs) float64
    weights: Array = field(repr=False)  # (n,) float64, of mean 1 in training
    training: int
    loss: Loss
    unit: (
        float  # of gradients, for `tol`: about the second derivative by a score, of that preconditioned with
    )
    classes: Classes | None
    scaler: Scaler | None


def answers(target: Target, rows: Array, held_out: Array, plan: VerticalLinear) -> Answers:
    """Of the common `rows` of the label party's table.

    Raises DataError for labels that cannot be learnt, or cannot be told apart after holding rows out.
    """
    order, training = split(len(rows), held_out)
    values = target.y.iloc[rows[order]]
    weights = np.ones(len(rows)) if target.weights is None else target.weights[rows[order]]
    if not weights[:training].any():
        raise DataError(f"the {training} common rows of training all have sample_weight 0")
    if len(held_out) and not weights[training:].any():
        raise DataError(f"the {len(held_out)} rows held out for validation all have sample_weight 0")
    check_weights(weights[:training])
    weights = weights / weights[:training].mean()
    if plan.family == "logistic":
        y, classes = _one_hot(values, training)
        if plan.security == "hidden" and y.shape[1] > 1:
            raise ConfigError(
                f'security="hidden" is for 2 classes, got {len(classes)}: its loss is a Taylor form of the '
                'logistic one; use security="exact"'
            )
        used, loss = weights[:training] > 0, LOSSES[loss_name(plan, y.shape[1])]
        if not _all_occur(y[:training][used]):
            raise DataError("rows of at least one class all have sample_weight 0")
        return Answers(y, weights, training, loss, _rareness(y[:training], weights[:training]), classes, None)
    y = features(values.to_frame())
    if plan.family == "linear":
        scaler = Scaler.fit(y[:training])
        return Answers(standardised(scaler, y), weights, training, LOSSES["squared"], 1.0, None, scaler)
    if (y < 0).any() or not y[:training].any():
        raise DataError(
            f"of {len(y)} targets {int((y < 0).sum())} are negative and {int((y > 0).sum())} above 0; a "
            "Poisson model needs none of the first, and some of the second"
        )
    unit = float((weights[:training, None] * y[:training]).mean())
    return Answers(y, weights, training, LOSSES["poisson"], unit, None, None)


def loss_name(plan: VerticalLinear, outputs: int) -> str:
    """Which of `LOSSES` a model of so many outputs has."""
    if plan.family != "logistic":
        return {"linear": "squared", "poisson": "poisson"}[plan.family]
    if plan.security == "hidden":
        return "taylor"
    return "binomial" if outputs == 1 else "multinomial"


def _one_hot(values: pd.Series, training: int) -> tuple[Array, Classes]:
    classes = labels(values)
    if len(classes) < 2:
        raise DataError(
            f"the {len(values)} common rows are all of one class; rows of another have to be shared too"
        )
    missing = set(classes) - set(labels(values.iloc[:training]))
    if missing:
        raise DataError(
            f"{len(missing)} of {len(classes)} classes are only among the {len(values) - training} rows held "
            "out for validation; lower validation_fraction, take another random_state (over a network, fit "
            "again), or bring more rows"
        )
    check_classes(classes)
    codes = encode_labels(values, classes)
    y = (codes[:, None] == np.arange(len(classes))).astype(np.float64)
    return (y[:, 1:] if len(classes) == 2 else y), classes


def _rareness(y: Array, weights: Array) -> float:
    """How much less the loss curves than it would if all classes were as frequent, at most 1."""
    shares = (weights[:, None] * y).mean(axis=0)
    return float(min(1.0, (4 * shares * (1 - shares)).min()))


def _all_occur(y: Array) -> bool:
    shares = y.mean(axis=0) if len(y) else np.zeros(y.shape[1])
    return bool((shares > 0).all() and (shares < 1).all())
