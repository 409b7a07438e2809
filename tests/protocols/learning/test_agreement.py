"""Laws of what row-clients agree on: it is what the pooled rows say, and only what was asked for leaves."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest

from protocols.data.tables import Scaler, moments
from protocols.errors import DataError, ProtocolError
from protocols.federation import simulate
from protocols.learning.agreement import Agreement, collect, scaled, tell
from protocols.party import Coordinator, Role, Run

X = np.random.default_rng(0).normal(3.0, 2.0, size=(30, 4))
Y = pd.Series(np.arange(30) % 3, name="y")
PARTS = {"a": slice(0, 5), "b": slice(5, 7), "c": slice(7, 30)}


async def uniting(me: Coordinator, width: int, labelled: bool) -> Agreement:
    return await collect(me, me.roster, width, labelled=labelled)


async def telling(me: Coordinator, x: Any, y: pd.Series | None) -> Agreement:
    return await tell(me, "server", x, y)


def run(x: Any, y: pd.Series | None, width: int) -> Run:
    roles: dict[str, Role] = {"server": partial(uniting, width=width, labelled=y is not None)}
    for name, rows in PARTS.items():
        roles[name] = partial(telling, x=x[rows], y=None if y is None else y[rows])
    return simulate(roles)


def test_all_agree_on_what_the_pooled_rows_say() -> None:
    whole = Scaler.fit(X)
    for scaler, classes in run(X, Y, 4).results.values():
        np.testing.assert_allclose(scaler.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(scaler.scale, whole.scale, rtol=1e-12)
        assert classes == (0, 1, 2)


@pytest.mark.parametrize(
    ("x", "y", "kinds"),
    [
        (X, Y, {"Moments", "Scaling", "Classes"}),
        (X, None, {"Moments", "Scaling"}),
        (X[:, :0], Y, {"Classes"}),
        (X[:, :0], None, set()),
    ],
)
def test_only_what_is_asked_for_leaves(x: Any, y: pd.Series | None, kinds: set[str]) -> None:
    done = run(x, y, x.shape[1])
    assert {kind.partition(".")[2].partition("/")[0] for kind in done.ledger.frame()["kind"]} == kinds
    scaler, classes = done.results["a"]
    assert (scaler is None) == (not x.shape[1]) and bool(classes) == (y is not None)


def test_a_client_may_unite_and_its_own_rows_count() -> None:
    async def first(me: Coordinator) -> Agreement:
        return await collect(me, ["b"], 4, labelled=False, own=[moments(X[:20])])

    async def other(me: Coordinator) -> Agreement:
        return await tell(me, "a", X[20:], None)

    for scaler, _ in simulate({"a": first, "b": other}).results.values():
        np.testing.assert_allclose(scaler.mean, X.mean(axis=0), rtol=1e-12)


def test_another_width_is_refused() -> None:
    with pytest.raises(
        ProtocolError,
        match=r"^server: protocols.Moments/1 from a .*: expected .*float64\[3\].* got .*float64\[4\]",
    ):
        run(X, None, 3)


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (Y.astype(object).where(Y.index > 4, "x"), r"^server: labels are str at a and int at b"),
        (Y * 0, r"^server: the target has 1 class"),
    ],
)
def test_labels_that_do_not_make_classes_are_refused(y: pd.Series, said: str) -> None:
    with pytest.raises(DataError, match=said):
        run(X, y, 4)


def test_without_a_scaler_columns_are_taken_as_they_are() -> None:
    assert scaled(None, X).dtype == scaled(Scaler.fit(X), X).dtype == np.float32
    np.testing.assert_array_equal(scaled(None, X), X.astype(np.float32))
    np.testing.assert_allclose(scaled(Scaler.fit(X), X).std(axis=0), 1.0, rtol=1e-5)


def test_a_scaler_is_undone() -> None:
    scaler = Scaler.fit(X)
    back = scaler.inverse(scaler(X))
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, X, rtol=1e-5, atol=1e-5)


def test_a_client_of_one_row_does_not_tell_it() -> None:
    async def alone(me: Coordinator) -> Agreement:
        return await tell(me, "server", X[:1], None)

    roles: dict[str, Role] = {"server": partial(uniting, width=4, labelled=False), "a": alone}
    with pytest.raises(DataError, match="^a: 1 training row, expected at least 2"):
        simulate(roles)
