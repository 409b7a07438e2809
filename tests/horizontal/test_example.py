"""The example runs as printed in its docstring, and learning together pays there."""

from __future__ import annotations

import re

import pytest

from examples.fedavg_digits import main


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main(clients=3)
    printed = capsys.readouterr().out
    together = float(re.findall(r"together: (\S+) on", printed)[0])
    alone = [float(line.split()[-1]) for line in printed.splitlines() if re.match(r"client\d ", line)]
    assert len(alone) == 3 and together > max(alone)
    assert "horizontal.Update/1" in printed
