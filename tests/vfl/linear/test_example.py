"""The example runs, on made-up customers and on the real table, shows what it is for, and fits on a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples import credit_logistic as example
from tests.vfl.customers import KINDS, check_it_pays, find


@KINDS
def test_the_example_runs(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find(kind, example, monkeypatch)
    example.main()
    said = capsys.readouterr().out
    check_it_pays(said, example, tmp_path, make_pipeline(StandardScaler(), LogisticRegression()))
    assert re.search(r"bank +2880 +2560 +320 +0", said) and "vfl.SealedResiduals/1" in said


def test_it_fits_on_a_page() -> None:
    assert len(Path(example.__file__).read_text(encoding="utf-8").splitlines()) <= 80
