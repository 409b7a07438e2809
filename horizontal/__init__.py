"""Horizontal federated learning: parties hold different rows of the same columns.

K clients and a server, which learns every client's update in the clear; see `horizontal.rounds`.
"""

from horizontal.estimator import FedClassifier, FedRegressor

__all__ = ["FedClassifier", "FedRegressor"]
