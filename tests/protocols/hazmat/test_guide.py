"""The guide's code runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support import ROOT

GUIDE = ROOT / "docs" / "guides" / "encrypted-arrays.md"


def test_the_guide_runs() -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    sums, shape, quarter, phe = done.stdout.strip().splitlines()
    assert len(sums.split()) in (3, 4, 5) and shape == "(12, 32, 2)"
    assert (quarter, phe) == ("0.25", "[2.5]")
