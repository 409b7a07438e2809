"""Vertical federated learning: parties hold different columns of the same rows, and one holds the label."""

from __future__ import annotations

from vfl.alignment.roles import Alignment, AlignmentReport, align
from vfl.boosting.estimator import VerticalGradientBoostingClassifier, VerticalGradientBoostingRegressor
from vfl.linear.estimator import (
    VerticalLinearRegression,
    VerticalLogisticRegression,
    VerticalPoissonRegressor,
)
from vfl.network.estimator import VerticalNetClassifier, VerticalNetRegressor

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
