"""Laws of boosted trees: the federated tree equals the pooled tree, split for split, in every mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import DataError
from protocols.federation import simulate
from protocols.wire.faults import Plan as Faulty
from tests.vfl.boosting.boosted import plan, pooled, roles, shared, train, tree_of
from vfl.boosting.losses import Loss

MODES: list[dict[str, Any]] = [
    {},
    {"min_samples_leaf": 4, "min_child_weight": 0.0},
    {"subsample": 0.6, "colsample": 0.5},
    {"top_rate": 0.2, "other_rate": 0.2},
    {"complete_secure": True},
    {"early_stopping": True, "validation_fraction": 0.3, "n_iter_no_change": 2, "learning_rate": 1.0},
    {"max_bins": 3, "gradient_bits": 6, "min_samples_split": 20},
    {"l2_regularization": 0.0, "max_depth": 1, "min_gain": 0.05},
]

# Pooled, all columns are the label party's, which complete_secure asks about.
TOGETHER = [mode for mode in MODES if not mode.get("complete_secure")]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("columns", [(2, 3), (3, 1, 2), (0, 3)])
@pytest.mark.parametrize("mode", TOGETHER, ids=[", ".join(mode) or "as it is" for mode in TOGETHER])
def test_the_federated_trees_are_the_pooled_trees(
    mode: dict[str, Any], columns: tuple[int, ...], classes: int
) -> None:
    tables, y = shared(150, columns, classes=classes)
    settings = plan(**{"n_estimators": 3, "max_depth": 3} | mode)
    apart, together = train(tables, y, settings), train(pooled(tables), y, settings)
    assert tree_of(apart) == tree_of(together) and len(tree_of(apart)) > 6
    for field in ("baseline", "scores"):
        assert np.array_equal(
            getattr(apart.results["bank"][1], field), getattr(together.results["bank"][1], field)
        )


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(8, 40),
    columns=st.lists(st.integers(1, 2), min_size=2, max_size=3),
    classes=st.integers(2, 3),
    mode=st.sampled_from(MODES),
)
@settings(max_examples=12)
def test_encrypted_and_plain_give_the_same_model(
    seed: int, rows: int, columns: list[int], classes: int, mode: dict[str, Any]
) -> None:
    tables, y = shared(rows, columns, seed, classes)
    same = {"n_estimators": 2, "max_depth": 2, "validation_fraction": 0.2} | {
        name: value for name, value in mode.items() if name != "validation_fraction"
    }
    try:
        plain = train(tables, y, plan(**same), seed=seed % 1000)
    except DataError:  # a class is only among the rows that are held out
        assert "early_stopping" in same
        return
    sealed = train(tables, y, plan(**same, encryption="paillier"), seed=seed % 1000)
    assert tree_of(plain) == tree_of(sealed)
    if not mode.get("complete_secure"):
        assert tree_of(train(pooled(tables), y, plan(**same), seed=seed % 1000)) == tree_of(plain)


def test_classes_that_fill_more_than_one_plaintext_are_learnt_alike() -> None:
    tables, y = shared(120, (1, 2), classes=17)  # 34 numbers a row, and a small key has room for 32
    same = {"n_estimators": 1, "max_depth": 2, "min_child_weight": 0.0}
    sealed = train(tables, y, plan(**same, encryption="paillier"))
    assert tree_of(sealed) == tree_of(train(pooled(tables), y, plan(**same)))


def test_owners_keep_the_splits_of_the_rounds_that_are_kept() -> None:
    tables, y = shared(200, (1, 2))
    same = {"early_stopping": True, "validation_fraction": 0.3, "max_depth": 2}
    whole = train(tables, y, plan(**same, n_estimators=6, n_iter_no_change=9)).results
    for party in tables:
        learnt = whole["bank"][1]
        assert len(whole[party][0].splits) == learnt.forest.splits(party)
    assert len(whole["bank"][1].scores) == 6 and whole["bank"][1].rounds <= 6


@pytest.mark.parametrize("loss", ["squared", "poisson"])
def test_numbers_are_learnt_alike_in_every_mode(loss: Any) -> None:
    tables, _ = shared(120, (2, 2))
    rng = np.random.default_rng(0)
    y = pd.Series(rng.poisson(np.exp(tables["bank"]["x0"].fillna(0) + tables["shop"]["x2"].fillna(0))))
    same = {"kind": "regression", "loss": loss, "n_estimators": 3, "max_depth": 3}
    weights = rng.uniform(0, 2, len(y)) * (rng.random(len(y)) < 0.9)
    runs = [
        train(tables, y, plan(**same), weights=weights),
        train(pooled(tables), y, plan(**same), weights=weights),
        train(tables, y, plan(**same, encryption="paillier"), weights=weights),
    ]
    assert tree_of(runs[0]) == tree_of(runs[1]) == tree_of(runs[2])


def mixed(rows: int = 200) -> tuple[dict[str, pd.DataFrame], pd.Series]:
    """Categories of all kinds, with gaps, beside numbers."""
    rng = np.random.default_rng(3)
    colour = rng.choice(["red", "green", "blue", "grey"], rows)
    flag, x, z = rng.random(rows) < 0.5, rng.normal(size=rows), rng.normal(size=rows)
    y = pd.Series(((np.isin(colour, ["red", "grey"]) * 1.5 + flag + x) > 1.2).astype(int))
    bank = pd.DataFrame({"colour": pd.Series(colour).mask(rng.random(rows) < 0.1), "z": z})
    shop = pd.DataFrame({"flag": flag, "x": x, "again": pd.Categorical(colour)})
    return {"bank": bank, "shop": shop}, y


def test_categories_are_split_alike_in_every_mode() -> None:
    tables, y = mixed()
    same = {"n_estimators": 4, "max_depth": 3}
    runs = [train(tables, y, plan(**same)), train(pooled(tables), y, plan(**same))]
    runs.append(train(tables, y, plan(**same, encryption="paillier")))
    assert tree_of(runs[0]) == tree_of(runs[1]) == tree_of(runs[2])
    # Some split takes colours apart that are not neighbours in the alphabet: blue, green, grey, red.
    splits = runs[1].results["bank"][0].splits
    masks = splits.left[np.isin(splits.column, [0, 4])][:, 1:5]
    assert any(not np.all(np.diff(mask.astype(int)) <= 0) for mask in masks)


def test_a_monotone_column_is_held_to_in_every_mode() -> None:
    tables, y = shared(300, (1, 2))
    tables = {party: table.fillna(0.0) for party, table in tables.items()}
    same = {"n_estimators": 6, "max_depth": 4}
    held = {"shop": {"x1": -1}}
    apart = train(tables, y, plan(**same), monotone=held)
    assert tree_of(apart) == tree_of(train(pooled(tables), y, plan(**same), monotone={"bank": {"x1": -1}}))
    assert tree_of(apart) == tree_of(train(tables, y, plan(**same, encryption="paillier"), monotone=held))
    assert tree_of(apart) != tree_of(train(tables, y, plan(**same)))


def test_complete_secure_shows_nothing_in_the_first_round() -> None:
    tables, y = shared(120, (2, 3))
    run = train(tables, y, plan(n_estimators=2, max_depth=3, complete_secure=True, encryption="paillier"))
    first = [entry for entry in run.ledger if entry.scope.startswith("fit/0")]
    assert [entry.kind for entry in first] == ["vfl.Drawn/1"]
    forest = run.results["bank"][1].forest
    own = forest.owner[: forest.roots[1]]
    assert set(own.tolist()) == {-1, 0} and 1 in forest.owner[forest.roots[1] :]


@pytest.mark.parametrize("parties", [2, 3])
def test_messages_wait_for_each_other_as_rarely_as_promised(parties: int) -> None:
    tables, y = shared(400, (2, 3, 2)[:parties])
    depth = 5
    run = train(tables, y, plan(n_estimators=1, max_depth=depth, encryption="paillier"))
    forest = run.results["bank"][1].forest
    assert len(set(forest.owner.tolist())) == parties + 1
    chain = run.ledger.chain_length("fit/0")
    assert chain <= (2 * depth + 2 if parties == 2 else 4 * depth + 1)
    assert parties > 2 or chain <= 3 * depth + 2


def test_lines_that_lose_repeat_and_disorder_change_nothing() -> None:
    tables, y = shared(80, (1, 2, 1))
    settings = plan(n_estimators=2, max_depth=3)
    faults = Faulty(seed=3, duplicate=0.3, delay=0.05)
    disturbed = simulate(roles(tables, y, settings), faults=faults)
    assert tree_of(disturbed) == tree_of(train(tables, y, settings))


@pytest.mark.parametrize("loss", [Loss("logistic"), Loss("softmax", 3), Loss("squared"), Loss("poisson")])
def test_gradients_are_those_of_the_loss(loss: Loss) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, loss.classes or 2, 20) if loss.name != "squared" else rng.normal(size=20)
    raw, one, small = rng.normal(size=(20, loss.outputs)), np.ones(20), 1e-5
    g, h = loss.derivatives(y, raw)
    for output in range(loss.outputs):
        step = small * (np.arange(loss.outputs) == output)
        ways = [
            np.array([loss.mean(y[i : i + 1], (raw + way * step)[i : i + 1], one[:1]) for i in range(20)])
            for way in (-1, 0, 1)
        ]
        assert np.allclose((ways[2] - ways[0]) / (2 * small), g[:, output], atol=1e-6)
        assert np.allclose((ways[2] - 2 * ways[1] + ways[0]) / small**2, h[:, output], atol=1e-4)
    base = loss.baseline(y, one)
    total = loss.derivatives(y, np.repeat(base[None], 20, axis=0))[0].sum(axis=0)
    assert np.allclose(total, 0, atol=1e-9)
