"""A bank has the label and some columns of its customers, a shop has other columns of most of them.

The two tables are made from scikit-learn's breast cancer table. Each holds nine tenths of the training rows
in an order of its own, so that eight tenths are common. Run: python examples/vertical_bank_shop.py
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from vfl import VerticalNetClassifier


def two_tables(seed: int = 0) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """(training tables, test tables): bank and shop, each with `customer_id`; the bank's with `default`."""
    rng = np.random.default_rng(seed)
    columns, benign = load_breast_cancer(return_X_y=True, as_frame=True)
    columns.insert(0, "customer_id", [f"C{number:05d}" for number in rng.permutation(len(columns))])
    bank = columns.iloc[:, :11].assign(default=1 - benign)
    shop = columns[["customer_id", *columns.columns[11:]]]
    order = rng.permutation(len(columns))
    test, train = order[:114], order[114:]
    tenth = len(train) // 10
    return (
        {
            "bank": bank.iloc[rng.permutation(train[tenth:])],
            "shop": shop.iloc[rng.permutation(train[:-tenth])],
        },
        {"bank": bank.iloc[test].drop(columns="default"), "shop": shop.iloc[rng.permutation(test)]},
    )


def main() -> None:
    """Train, say what left whom, predict new customers."""
    train, test = two_tables()
    model = VerticalNetClassifier(epochs=10)
    model.fit(train, target="bank.default", id="customer_id")
    print(model.alignment_)
    print(model.ledger_.summary(by=["sender", "receiver", "kind"])[["messages", "bytes"]])

    probability = model.predict_proba(test)
    truth = 1 - load_breast_cancer(as_frame=True).target.loc[test["bank"].index]
    print(f"AUC on {len(probability)} new customers: {roc_auc_score(truth, probability[1]):.3f}")


if __name__ == "__main__":
    main()
