"""Vertical federated learning: parties hold different columns of the same rows, and one holds the label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.lazy import lazily

if TYPE_CHECKING:
    from vfl.alignment import Alignment, align
    from vfl.alignment.roles import AlignmentReport
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

# `vfl psi --help` imports this package, and must not wait for torch.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "Alignment": "vfl.alignment",
        "AlignmentReport": "vfl.alignment.roles",
        "VerticalGradientBoostingClassifier": "vfl.boosting.estimator",
        "VerticalGradientBoostingRegressor": "vfl.boosting.estimator",
        "VerticalLinearRegression": "vfl.linear.estimator",
        "VerticalLogisticRegression": "vfl.linear.estimator",
        "VerticalNetClassifier": "vfl.network.estimator",
        "VerticalNetRegressor": "vfl.network.estimator",
        "VerticalPoissonRegressor": "vfl.linear.estimator",
        "align": "vfl.alignment",
    },
)
