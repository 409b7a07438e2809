"""The example runs as its docstring says, and shows what the guide says of it."""

from __future__ import annotations

import re

import pytest

from examples.split_digits import main


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main(epochs=1)
    vanilla, u_shaped = capsys.readouterr().out.split("U-shaped: ")
    accuracies = [float(re.findall(r"0\.\d+", said)[0]) for said in (vanilla, u_shaped)]
    assert accuracies[0] == accuracies[1] > 0.7
    assert "protocols.LabelledSmashed/1" in vanilla
    assert "Labelled" not in u_shaped and "protocols.CutGradient/1" in u_shaped
