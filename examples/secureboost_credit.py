"""A bank and a telco learn who will not pay: boosted trees with encrypted gradients from two CSV files.

Each file has its rows in an order of its own; eight tenths of the customers are in both. The customers are
those of UCI's table of credit cards if it is in a folder `shared/data` here or above, else made up alike.
Run: python examples/secureboost_credit.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from vfl import VerticalGradientBoostingClassifier

TABLE = "shared/data/default_credit/UCI_Credit_Card.csv"
BANK = ["LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE"]
ROWS = 4000


def customers() -> pd.DataFrame:
    """ID, five columns of the bank's, `default`, and columns of the telco's."""
    found = [here / TABLE for here in Path(__file__).resolve().parents if (here / TABLE).exists()]
    if found:
        return pd.read_csv(found[0], nrows=ROWS).rename(columns={"default.payment.next.month": "default"})
    rng = np.random.default_rng(0)
    means = rng.normal(size=ROWS)  # what a customer can spare, which is nobody's column
    late = {f"PAY_{month}": rng.normal(-means, 0.8) for month in (0, 2, 3, 4, 5, 6)}  # in months
    made = pd.DataFrame(late).round().clip(-2, 8)
    made["LIMIT_BAL"] = 10_000 * np.exp(rng.normal(2.5 + 0.2 * means, 0.8)).round()
    made[BANK[1:]] = rng.integers([1, 1, 1, 21], [2, 4, 3, 75], (ROWS, 4), endpoint=True)
    score = (made["PAY_0"] > 0) + 0.3 * made["PAY_2"] - 1.8 - made["LIMIT_BAL"] / 1e6
    made["default"] = (score + rng.logistic(size=ROWS) > 0).astype(int)
    made.insert(0, "ID", np.arange(1, ROWS + 1))
    return made


def write_files(folder: Path) -> None:
    """bank.csv and telco.csv to learn from, bank-new.csv and telco-new.csv to score."""
    rng = np.random.default_rng(1)
    whole = customers()
    whole["SEX"] = np.where(whole["SEX"] == whole["SEX"].min(), "male", "female")  # text is a category
    telco = [name for name in whole.columns if name not in (*BANK, "default")]
    rows = rng.permutation(len(whole))
    known, new = rows[len(rows) // 5 :], rows[: len(rows) // 5]
    tenth = len(known) // 10
    for party, names, own in (
        ("bank", ["ID", *BANK, "default"], known[tenth:]),
        ("telco", telco, known[:-tenth]),
    ):
        whole.iloc[rng.permutation(own)][names].to_csv(folder / f"{party}.csv", index=False)
        whole.iloc[rng.permutation(new)][names].to_csv(folder / f"{party}-new.csv", index=False)


def main() -> None:
    """Train, score new customers, save each party's part, and load them again."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(folder)
        known = {party: pd.read_csv(folder / f"{party}.csv") for party in ("bank", "telco")}
        new = {party: pd.read_csv(folder / f"{party}-new.csv") for party in ("bank", "telco")}

        model = VerticalGradientBoostingClassifier(n_estimators=10, learning_rate=0.3, max_depth=3)
        model.fit(known, target="bank.default", id="ID")  # keys of 2048 bits
        print(model.alignment_)
        print(model.ledger_.summary(by=["sender", "receiver", "kind"])[["messages", "bytes"]])
        print(model.party_importances_.round(3).to_string())

        run = model.save(folder / "models")  # models/bank/<run>, models/telco/<run>
        loaded = VerticalGradientBoostingClassifier.load(folder / "models", run)
        chances = loaded.predict_proba(new)[1]
        truth = new["bank"].set_index("ID")["default"]
        print(f"AUC on {len(chances)} new customers: {roc_auc_score(truth[chances.index], chances):.3f}")


if __name__ == "__main__":
    main()
