"""FedAvg on scikit-learn's digits: five clients with different mixes of digits, against each alone.

    python examples/fedavg_digits.py [clients] [alpha]

A small alpha gives a digit to few clients, so that each alone has hardly seen some digits.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from horizontal import FedClassifier
from protocols.data.partition import dirichlet


def main(clients: int = 5, alpha: float = 0.3) -> None:
    images, digit = load_digits(return_X_y=True, as_frame=True)
    train, test = train_test_split(images.assign(digit=digit), test_size=0.2, random_state=0, stratify=digit)
    parts = dirichlet(train["digit"], clients, alpha, np.random.default_rng(0), min_rows=50)
    tables = {f"client{i}": train.iloc[rows] for i, rows in enumerate(parts)}

    model = FedClassifier(hidden=(32,), rounds=10, local_epochs=2, learning_rate=3e-3, random_state=0)
    model.fit(tables, target="digit")

    report = pd.DataFrame(
        {
            "rows": {name: len(table) for name, table in tables.items()},
            "digits seen": {name: table["digit"].nunique() for name, table in tables.items()},
            "accuracy alone": {
                name: accuracy(clone(model).fit({name: table}, target="digit"), test)
                for name, table in tables.items()
            },
        }
    )
    print(report.round(3).to_string())
    print(f"\ntogether: {accuracy(model, test):.3f} on {len(test)} rows that no client has seen\n")
    print(model.ledger_.summary(by=["kind"]).to_string(columns=["messages", "bytes"]))


def accuracy(model: FedClassifier, test: pd.DataFrame) -> float:
    return float((model.predict(test) == test["digit"]).mean())


if __name__ == "__main__":
    main(*(cast(word) for cast, word in zip((int, float), sys.argv[1:], strict=False)))
