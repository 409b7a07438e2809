"""L-BFGS from inner products is L-BFGS, and a line search ends where the slope is about 0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.arrays import Array, Arrays
from protocols.errors import DataError
from vfl.linear.line_search import MEMORY, Span, direction, line_search, products


def textbook(gradient: Array, steps: list[Array], changes: list[Array]) -> Array:
    """Nocedal and Wright 2006, algorithm 7.4."""
    q, factors = gradient, []
    for s, y in zip(reversed(steps), reversed(changes), strict=True):
        factors.append(s @ q / (s @ y))
        q = q - factors[-1] * y
    r = q * (steps[-1] @ changes[-1] / (changes[-1] @ changes[-1])) if steps else q
    for s, y, a in zip(steps, changes, reversed(factors), strict=True):
        r = r + s * (a - y @ r / (s @ y))
    return -r


@given(st.integers(0, 2**32), st.integers(0, MEMORY + 3), st.integers(1, 5))
def test_directions_need_no_vectors(seed: int, turns: int, owners: int) -> None:
    rng = np.random.default_rng(seed)
    curved = rng.normal(size=(7, 7))
    curved = curved @ curved.T + 0.1 * np.eye(7)
    pieces = np.array_split(np.arange(7), owners)
    whole, spans = Span(rng.normal(size=(7, 1))), []
    for piece in pieces:
        spans.append(Span(whole.point[piece]))

    def turn() -> Array:
        gradient = curved @ whole.point
        whole.turn(gradient)
        for span, piece in zip(spans, pieces, strict=True):
            span.turn(gradient[piece])
        gram: Array = sum((products(span.basis) for span in spans), np.zeros(()))
        return direction(gram)

    for _ in range(turns):
        coefficients, step = turn(), float(rng.uniform(0.1, 1.0))
        for span in (whole, *spans):
            span.move(coefficients, step)
    found = whole.combined(turn())[:, 0]
    steps, changes = ([v[:, 0] for v in vectors] for vectors in (whole.steps, whole.changes))
    assert len(steps) == min(turns, MEMORY)
    expected = textbook(whole.gradient[:, 0], steps, changes)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    parts = np.concatenate([span.combined(turn()) for span in spans])[:, 0]
    np.testing.assert_allclose(parts, expected, atol=1e-6 * np.abs(expected).max())


@given(st.floats(1e-6, 1e6), st.floats(0.5, 4.0))
def test_a_line_search_ends_near_the_bottom(where: float, power: float) -> None:
    def slope(t: float) -> float:
        return float(np.sign(t - where) * abs(t / where - 1) ** power)

    found = line_search(slope)
    assert abs(found / where - 1) <= 2e-3 or abs(slope(found)) <= 1e-3


def test_a_line_search_survives_what_is_too_large_for_a_float() -> None:
    def slope(t: float) -> float:
        with np.errstate(over="ignore"):
            return float(np.exp(1000 * t) - 5.0)

    assert line_search(slope) == pytest.approx(np.log(5) / 1000, rel=1e-2)
    assert line_search(lambda t: 1.0) == line_search(lambda t: float("nan")) == 0.0


def test_a_checkpoint_of_other_columns_is_refused() -> None:
    kept = Arrays(Span(np.zeros((3, 1))).arrays("block"))
    with pytest.raises(DataError, match=r"not of this model: block should be \[4, 1\]"):
        Span(np.zeros((4, 1))).restore("block", kept)
