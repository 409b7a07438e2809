"""Each method that runs over a network, as a short run to repeat: one line in `CASES` for each."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning

from horizontal import FedClassifier
from protocols.hazmat.paillier import Paillier, Plain
from protocols.service.caller import Connected
from protocols.testing.case import POLICY as POLICY
from protocols.testing.case import Case as Case
from protocols.testing.case import Outcome as Outcome
from protocols.testing.case import Tables
from split import SplitClassifier
from vfl import VerticalGradientBoostingClassifier, VerticalLogisticRegression, VerticalNetClassifier, align

SEED = Case.seed  # of all parties in one process, and over a network where a test sets it


def columns(rows: int = 80) -> dict[str, pd.DataFrame]:
    """Three parties with some columns of the same people each."""
    rng = np.random.default_rng(0)
    whole = pd.DataFrame(rng.normal(size=(rows, 5)), columns=list("abcde")).assign(id=np.arange(rows))
    whole["y"] = (whole["a"] + whole["c"] + whole["e"] > 0).astype(int)
    return {
        "bank": whole[["id", "a", "y"]].sample(frac=0.9, random_state=1),
        "telco": whole[["id", "b", "c"]].sample(frac=0.9, random_state=2),
        "shop": whole[["id", "d", "e"]].sample(frac=0.9, random_state=3),
    }


def vertical(data: Any) -> Outcome:
    fitted = VerticalNetClassifier(epochs=3, batch_size=32, random_state=SEED)
    fitted.fit(data, target="bank.y", id="id")
    predicted = fitted.predict_proba(data)
    return Outcome(fitted.run_, {"ids": predicted.index.to_numpy(), "said": predicted.to_numpy()})


# No kernel to load in each of many processes.
SMALL = Paillier(bits=512, small_key=True, backend="gmpy2")


def boosting(data: Any, encryption: Paillier | Plain = SMALL) -> Outcome:
    fitted = VerticalGradientBoostingClassifier(
        n_estimators=3, max_depth=2, subsample=0.8, encryption=encryption, random_state=SEED
    )
    fitted.fit(data, target="bank.y", id="id")
    predicted = fitted.predict_proba(data)
    return Outcome(fitted.run_, {"ids": predicted.index.to_numpy(), "said": predicted.to_numpy()})


def linear(data: Any, **settings: Any) -> Outcome:
    settings = {"max_iter": 4, "tol": 0.0, "l2": 0.01, "encryption": SMALL, "random_state": SEED, **settings}
    fitted = VerticalLogisticRegression(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(data, target="bank.y", id="id")
    predicted = fitted.predict_proba(data)
    return Outcome(fitted.run_, {"ids": predicted.index.to_numpy(), "said": predicted.to_numpy()})


def aligned(data: Any) -> Outcome:
    found = align(data, id="id", label_party="bank")
    return Outcome(found.run, {"rows": found.tables["bank"].to_numpy()})


def rows(people: int = 90) -> dict[str, pd.DataFrame]:
    """Two clients with all columns of some people each."""
    rng = np.random.default_rng(1)
    whole = pd.DataFrame(rng.normal(size=(people, 4)), columns=list("abcd")).assign(id=np.arange(people))
    whole["y"] = (whole["a"] + whole["c"] > 0).astype(int)
    return {"north": whole[:50], "south": whole[50:]}


def served_rows() -> Tables:
    """The same, and a server without data."""
    return {"server": None, **rows()}


def fedavg(data: Any) -> Outcome:
    fitted = FedClassifier(rounds=3, fraction=0.5, hidden=(8,), random_state=SEED).fit(
        data, target="y", id="id"
    )
    asked = rows()["south"]
    return Outcome(fitted.run_, {"said": fitted.predict_proba(asked).to_numpy()})


def split_net(data: Any) -> Outcome:
    fitted = SplitClassifier(cut=(2, 4), epochs=3, random_state=SEED).fit(data, target="y", id="id")
    asked = data if isinstance(data, Connected) else {"north": rows()["north"]}
    return Outcome(fitted.run_, {"said": fitted.predict_proba(asked).to_numpy()})


CASES = {
    "vertical-net": Case("bank", columns, vertical),
    "vertical-boosting": Case("bank", columns, boosting),
    "vertical-linear": Case("bank", columns, linear),
    "fedavg": Case("north", served_rows, fedavg),
    "split-net": Case("north", served_rows, split_net),
}

# Besides, where there is time for them: what else is a program of its own, or speaks otherwise.
MORE = {
    "align": Case("bank", columns, aligned),
    "vertical-boosting-plain": Case("bank", columns, partial(boosting, encryption=Plain())),
    "vertical-linear-hidden": Case("bank", columns, partial(linear, security="hidden")),
    "vertical-linear-plain": Case("bank", columns, partial(linear, security="plain")),
    "vertical-linear-sgd": Case("bank", columns, partial(linear, solver="sgd")),
}
ALL = {**CASES, **MORE}
# For the parameters of a test.
WHICH = [*CASES, *(pytest.param(name, marks=pytest.mark.long) for name in MORE)]
