"""Vertical federated learning: parties hold different columns of the same rows, and one holds the label."""

from __future__ import annotations

from vfl.align import Alignment, AlignmentReport, align
from vfl.estimator import VerticalNetClassifier, VerticalNetRegressor

__all__ = ["Alignment", "AlignmentReport", "VerticalNetClassifier", "VerticalNetRegressor", "align"]
