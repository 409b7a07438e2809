"""What an example on customers of a bank and a telco must show, whichever customers it finds."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from tests.support import real

# Made up anywhere; those of the real table only where that is wanted.
KINDS = pytest.mark.parametrize("kind", ["made up", pytest.param("real", marks=pytest.mark.tables)])


def find(kind: str, example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The customers of this kind, which `example` finds from here on, whatever lies beside the repository."""
    if kind == "real":
        real.file(real.CREDIT)
    else:
        monkeypatch.setattr(example, "TABLE", "no such table")
    found: pd.DataFrame = example.customers()
    assert ("BILL_AMT1" in found) == (kind == "real")
    return found


def check_it_pays(said: str, example: ModuleType, folder: Path, pooled: Any) -> None:
    """To learn together is nearly as good as `pooled` on one table, and much better than the bank alone."""
    example.write_files(folder)
    both = [
        pd.read_csv(folder / f"bank{part}.csv").merge(pd.read_csv(folder / f"telco{part}.csv"), on="ID")
        for part in ("", "-new")
    ]
    known, new = (pd.get_dummies(table) for table in both)
    columns = [name for name in known if name not in ("ID", "default")]
    at_bank = [name for name in columns if str(name).startswith(tuple(example.BANK))]

    def auc(names: list[Any]) -> float:
        pooled.fit(known[names], known["default"])
        return float(roc_auc_score(new["default"], pooled.predict_proba(new[names])[:, 1]))

    found = re.search(rf"AUC on {len(new)} new customers: (\d\.\d+)", said)
    assert found and len(at_bank) < len(columns)
    assert float(found[1]) > auc(columns) - 0.02
    assert float(found[1]) > auc(at_bank) + 0.08
