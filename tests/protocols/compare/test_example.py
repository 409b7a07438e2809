"""The example runs, answers its questions and fits on a page."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.support import ROOT

EXAMPLE = ROOT / "examples" / "compare_three_ways.py"


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    frame = runpy.run_path(str(EXAMPLE))["main"](rows=150, tune=False)
    said = capsys.readouterr().out
    for answer in ("protocols.Rows/1", "protocols.Smashed/1", "server compute, fedavg: claimed"):
        assert answer in said
    assert {"centralised", "fedavg", "vertical"} <= set(frame["method"])
    assert [file.name for file in tmp_path.iterdir()] == ["three_ways.html"]  # not the demo's comparison.html
    assert len(EXAMPLE.read_text().splitlines()) <= 80
