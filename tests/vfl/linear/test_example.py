"""The example runs, on the real table and on a made-up one, and fits on a page."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "credit_logistic.py"


@pytest.mark.parametrize("made_up", [True, False])
def test_the_example_runs(
    made_up: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if made_up:
        monkeypatch.setattr(Path, "exists", lambda path: False)
        module = runpy.run_path(str(EXAMPLE))
        table = module["customers"]()
        monkeypatch.undo()
        assert len(table) == module["ROWS"]
        assert {"ID", "default", *module["BANK"]} < {*table.columns} and 0.1 < table["default"].mean() < 0.5
        return
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    auc = re.search(r"AUC on 800 new customers: (\d\.\d+)", said)
    assert auc and float(auc[1]) > 0.66
    assert re.search(r"bank +2880 +2560 +320 +0", said) and "vfl.SealedResiduals/1" in said
    assert len(EXAMPLE.read_text().splitlines()) <= 80
