"""Real tables whose columns are divided among parties, and what scikit-learn makes of them pooled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes

from protocols.arrays import Array
from protocols.hazmat.paillier import Paillier
from tests.support import real

SMALL = Paillier(512, small_key=True)
PARTIES = ("bank", "shop", "telco", "club")
TARGET = "label of it"


@cache
def breast_cancer() -> pd.DataFrame:
    data = load_breast_cancer(as_frame=True)
    return pd.DataFrame(data.data).assign(**{TARGET: data.target})


@cache
def diabetes() -> pd.DataFrame:
    data = load_diabetes(as_frame=True, scaled=False)
    return pd.DataFrame(data.data).assign(**{TARGET: data.target})


def credit(rows: int) -> pd.DataFrame:
    whole = pd.read_csv(real.file(real.CREDIT), nrows=rows).drop(columns="ID")
    return whole.rename(columns={"default.payment.next.month": TARGET})


def divided(
    table: pd.DataFrame, feature_parties: int, seed: int = 0, at_label: int | None = None
) -> dict[str, pd.DataFrame]:
    """The columns dealt out in a random order, and each party's rows in an order of its own.

    at_label: how many columns the label party has; by default as many as the others.
    """
    rng = np.random.default_rng(seed)
    whole = table.assign(id=rng.permutation(len(table)))
    names = rng.permutation([name for name in table.columns if name != TARGET])
    first = len(names) // (feature_parties + 1) if at_label is None else at_label
    parts = [names[:first], *np.array_split(names[first:], feature_parties)]
    tables = {
        party: whole[["id", *part, *([TARGET] if party == "bank" else [])]]
        for party, part in zip(PARTIES, parts, strict=False)
    }
    return {party: part.sample(frac=1, random_state=i) for i, (party, part) in enumerate(tables.items())}


def pooled(table: pd.DataFrame) -> tuple[pd.DataFrame, Array]:
    """The columns standardised, and the labels."""
    x = table.drop(columns=TARGET).astype(np.float64)
    return (x - x.mean()) / x.std(ddof=0), table[TARGET].to_numpy()


def names_of(table: pd.DataFrame) -> list[str]:
    """All columns but the target."""
    return [str(name) for name in table.columns if name != TARGET]


def united(coef: Mapping[str, pd.Series | pd.DataFrame], names: Iterable[str]) -> Array:
    """All parties' coefficients in one order."""
    return np.asarray(pd.concat([*coef.values()]).loc[[*names]].to_numpy())


FIT: dict[str, Any] = {"target": f"bank.{TARGET}", "id": "id"}
