"""The guide to private set intersection runs as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.support import ROOT
from vfl.command import app

GUIDE = ROOT / "docs" / "guides" / "psi.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def test_its_code_runs(tmp_path: Path) -> None:
    code = "\n".join([*blocks("python"), "print(found.report.size)"])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "bank learns which of its own ids shop also has (2)" in done.stdout
    assert done.stdout.endswith("\n2\n")


def test_its_first_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"customer": ["A7", "B2", "C5"], "income": [31, 45, 28]}).to_csv("bank.csv", index=False)
    pd.DataFrame({"card": ["C5", "A7", "x9"], "visits": [4, 2, 8]}).to_parquet("shop.parquet")
    vfl, psi, *words = shlex.split(blocks("console")[0])
    said = CliRunner().invoke(app, words)
    assert (vfl, psi, said.exit_code) == ("vfl", "psi", 0), said.output
    assert pd.read_parquet("aligned/bank.parquet")["customer"].tolist() == ["A7", "C5"]
    assert pd.read_parquet("aligned/shop.parquet")["card"].tolist() == ["A7", "C5"]
