"""Vertical federated learning: parties hold different columns of the same rows, and one holds the label."""

from __future__ import annotations

from vfl.align import Alignment, AlignmentReport, align
from vfl.boosting.estimator import VerticalGradientBoostingClassifier, VerticalGradientBoostingRegressor
from vfl.estimator import VerticalNetClassifier, VerticalNetRegressor
from vfl.linear.estimator import (
    VerticalLinearRegression,
    VerticalLogisticRegression,
    VerticalPoissonRegressor,
)

__all__ = [
    "Alignment",
    "AlignmentReport",
    "VerticalGradientBoostingClassifier",
    "VerticalGradientBoostingRegressor",
    "VerticalLinearRegression",
    "VerticalLogisticRegression",
    "VerticalNetClassifier",
    "VerticalNetRegressor",
    "VerticalPoissonRegressor",
    "align",
]
