"""The example runs, on made-up customers and on the real table, shows what it is for, and fits on a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from sklearn.ensemble import GradientBoostingClassifier

from examples import secureboost_credit as example
from tests.vfl.customers import KINDS, check_it_pays, find


@KINDS
def test_the_example_runs(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find(kind, example, monkeypatch)
    example.main()
    said = capsys.readouterr().out
    pooled = GradientBoostingClassifier(n_estimators=10, learning_rate=0.3, max_depth=3, random_state=0)
    check_it_pays(said, example, tmp_path, pooled)
    assert "vfl.SealedSums/1" in said and "vfl.ClearSums/1" not in said


def test_it_fits_on_a_page() -> None:
    assert len(Path(example.__file__).read_text(encoding="utf-8").splitlines()) <= 80
