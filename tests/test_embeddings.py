"""What embeddings that are wider than the columns give away although the weights are secret, as the docs say.

Where ReLU lets a number through, it is affine in the row. So a table of embeddings is one of low rank where
it is not 0, and filling in what ReLU cut away (alternating least squares) gives all rows up to one invertible
affine map that nobody knows. A few rows that are known give the map. Independent columns that are not normal
give it too, up to their order, scale and sign (independent component analysis).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import FastICA

from protocols.arrays import Array
from protocols.learning.cut import Smashed
from tests.test_solving import seen_by
from vfl import VerticalNetClassifier
from vfl.order import Order

ROWS, KNOWN = 400, 20


def standard(x: Array) -> Array:
    return np.asarray((x - x.mean(axis=0)) / x.std(axis=0))


def independent(seed: int) -> Array:
    """Six columns: three uniform, two exponential, one of two values."""
    rng = np.random.default_rng(seed)
    two = rng.integers(0, 2, (ROWS, 1))
    return standard(np.column_stack([rng.uniform(size=(ROWS, 3)), rng.exponential(size=(ROWS, 2)), two]))


def cancer(seed: int) -> Array:
    """Eight columns of scikit-learn's table, which depend on each other."""
    rng = np.random.default_rng(seed)
    return standard(load_breast_cancer().data[:ROWS][:, rng.choice(30, 8, replace=False)])


def embedded(x: Array, seed: int) -> tuple[Array, Array]:
    """One epoch's embeddings (n, 64) as the label party gets them, at default widths, and the rows behind."""
    ids = [f"{i:04}" for i in range(ROWS)]
    bank = pd.DataFrame({"id": ids, "y": (x.sum(axis=1) > 0).astype(int)})
    shop = pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])]).assign(id=ids)
    with seen_by("bank") as got, seen_by("shop") as told:
        VerticalNetClassifier(epochs=1, random_state=seed).fit({"bank": bank, "shop": shop}, "bank.y", "id")
    (order,) = [m.rows for _, m in told if isinstance(m, Order)]
    return np.concatenate([m.h for _, m in got if isinstance(m, Smashed)]).astype(np.float64), x[order]


def least_squares(a: Array, b: Array, mask: Array) -> Array:
    """For each column of `b` (n, k) its least squares in `a` (n, d), over the rows in `mask` (n, k)."""
    left = np.einsum("nk,ni,nj->kij", mask, a, a) + 1e-9 * np.eye(a.shape[1])
    return np.asarray(np.linalg.solve(left, np.einsum("nk,ni->ki", mask * b, a)[..., None])[..., 0])


def completed(h: Array, columns: int) -> Array:
    """Rows (n, columns), up to an affine map, from their embeddings alone."""
    mask, ones = (h > 0).astype(np.float64), np.ones((len(h), 1))
    x = np.linalg.svd(h - h.mean(axis=0), full_matrices=False)[0][:, :columns]
    for _ in range(250):
        x = np.linalg.qr(x - x.mean(axis=0))[0] * np.sqrt(len(h))
        w = least_squares(np.hstack([x, ones]), h, mask)
        x = least_squares(w[:, :-1], (h - w[:, -1]).T, mask.T)
    return x


def mapped(found: Array, x: Array, known: slice) -> Array:
    """`found` under the affine map that fits best on the known rows."""
    a = np.hstack([found, np.ones((len(found), 1))])
    return np.asarray(a @ np.linalg.lstsq(a[known], x[known], rcond=None)[0])


def components(found: Array, x: Array) -> Array:
    """How well each column is found up to scale and sign: its largest |correlation| with a component."""
    ica = FastICA(x.shape[1], whiten="unit-variance", random_state=0, max_iter=5000).fit_transform(found)
    return np.asarray(np.abs(np.corrcoef(ica.T, x.T)[: x.shape[1], x.shape[1] :]).max(axis=0))


MORE = [(made, seed) for made in (independent, cancer) for seed in range(3)][1:]


@pytest.mark.parametrize(
    ("made", "seed"), [(independent, 0), *(pytest.param(*more, marks=pytest.mark.long) for more in MORE)]
)
def test_a_wide_embedding_gives_rows_up_to_an_affine_map(made: object, seed: int) -> None:
    assert callable(made)
    torch.set_num_threads(1)
    h, x = embedded(made(seed), seed)
    found = completed(h, x.shape[1])
    explained = 1 - ((mapped(found, x, slice(None)) - x) ** 2).mean(axis=0).max()
    near = (np.abs(mapped(found, x, slice(KNOWN)) - x)[KNOWN:] < 0.1).mean()
    alone = components(found, x)
    print(f"up to a map: R2 {explained:.3f}; {KNOWN} rows known: {near:.3f}; none: {alone.round(2)}")
    assert explained > 0.98 and near > 0.7
    assert made is cancer or (alone > 0.9).all()
