"""Vertical federated learning: parties hold different columns of the same rows, and one holds the label."""

from __future__ import annotations

from vfl.align import Alignment, AlignmentReport, align
from vfl.boosting.estimator import VerticalGradientBoostingClassifier, VerticalGradientBoostingRegressor
from vfl.estimator import VerticalNetClassifier, VerticalNetRegressor

__all__ = [
    "Alignment",
    "AlignmentReport",
    "VerticalGradientBoostingClassifier",
    "VerticalGradientBoostingRegressor",
    "VerticalNetClassifier",
    "VerticalNetRegressor",
    "align",
]
