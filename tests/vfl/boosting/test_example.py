"""The example runs, and fits on a page."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "secureboost_credit.py"


def test_the_example_runs_and_predicts_well(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    auc = re.search(r"AUC on 800 new customers: (\d\.\d+)", said)
    assert auc and float(auc[1]) > 0.68
    assert "vfl.SealedSums/1" in said and "vfl.ClearSums/1" not in said
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 80
