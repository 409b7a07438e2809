"""Split learning: a network cut by layers; the client holds the first ones, a server the rest."""

from __future__ import annotations

from split.estimator import SplitClassifier, SplitRegressor

__all__ = ["SplitClassifier", "SplitRegressor"]
