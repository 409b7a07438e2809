"""Laws of levels: every party knows alike whose histogram is computed, and none is of too few rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vfl.boosting.nodes import Drawing, below, roots


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 60), least=st.integers(2, 12))
def test_no_histogram_is_of_fewer_rows_than_may_be_split(seed: int, rows: int, least: int) -> None:
    rng = np.random.default_rng(seed)
    drawing = Drawing(rng.random(rows) < 0.8)
    level = roots(2, drawing, least)
    while level.rows:
        assert min(len(level.drawn[node]) for node in level.summed) >= least
        assert level.smallest == min(map(len, level.drawn))  # a sibling's histogram follows from its parent's
        for node in level.summed if len(level.summed) < len(level.rows) else ():
            mine, sibling = len(level.drawn[node]), len(level.drawn[node ^ 1])
            assert mine <= sibling or sibling < least
        sides = {
            node: rng.random(len(some)) < rng.random()
            for node, some in enumerate(level.rows)
            if len(level.drawn[node]) >= least
        }
        parents = [*sides]
        lower, kept = below(level, sides, drawing, least)
        assert set(kept) <= set(parents)
        if sum(map(len, lower.rows)) == sum(map(len, level.rows)) and rng.random() < 0.5:
            break
        level = lower
