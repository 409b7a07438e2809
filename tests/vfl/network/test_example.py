"""The example runs as printed in the guide, and fits on a page."""

from __future__ import annotations

import re
import runpy

import pytest

from tests.support import ROOT

EXAMPLE = ROOT / "examples" / "vertical_bank_shop.py"


def test_the_example_runs_and_predicts_well(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    auc = re.search(r"AUC on 114 new customers: (\d\.\d+)", said)
    assert auc and float(auc[1]) > 0.97
    assert re.search(r"bank +410 +365 +45 +0", said) and "protocols.Smashed/1" in said
    assert len(EXAMPLE.read_text().splitlines()) <= 80
