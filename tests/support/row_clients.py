"""Small tables that the tests of horizontal learning share."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes, load_digits


def rows(sizes: dict[str, int], seed: int = 0, columns: int = 4) -> dict[str, pd.DataFrame]:
    """Clients with so many rows each: numeric columns x0, x1, ... on different scales, and a label `y` of 0
    or 1."""
    rng = np.random.default_rng(seed)
    tables = {}
    for name, size in sizes.items():
        x = rng.normal(size=(size, columns)) * 10.0 ** np.arange(columns)
        table = pd.DataFrame(x, columns=[f"x{i}" for i in range(columns)])
        noise = rng.normal(size=size)
        table["y"] = ((x / 10.0 ** np.arange(columns)).sum(axis=1) + noise > 0).astype(int)
        table.loc[0, "y"], table.loc[1, "y"] = 0, 1
        tables[name] = table
    return tables


@cache
def digits() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test rows of scikit-learn's digits, the label in `digit`."""
    x, y = load_digits(return_X_y=True, as_frame=True)
    return _parts(x.assign(digit=y))


@cache
def diabetes() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test rows of scikit-learn's diabetes, the number in `progress`."""
    x, y = load_diabetes(return_X_y=True, as_frame=True)
    return _parts(x.assign(progress=y))


def _parts(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    train = table.sample(frac=0.8, random_state=0)
    return train, table.drop(train.index)
