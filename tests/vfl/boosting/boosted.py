"""Roles of boosted models over tables whose rows are in one order already, and the same on pooled columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from protocols.federation import simulate
from protocols.party import Role, Run
from protocols.psi.ids import canonical
from vfl.boosting.feature import feature_party
from vfl.boosting.label import label_party
from vfl.boosting.parameters import Boosting
from vfl.boosting.parts import Table

Tables = Mapping[str, pd.DataFrame]


def plan(**settings: Any) -> Boosting:
    told = {"label_party": "bank", "kind": "classification", "encryption": "plain"}
    small = {"key_bits": 1024, "small_key": True, "min_samples_split": 2, "min_samples_leaf": 1}
    return Boosting.model_validate(told | small | settings)


def roles(
    tables: Tables,
    y: pd.Series,
    settings: Boosting,
    weights: Any = None,
    monotone: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, Role]:
    """tables: party -> columns, row i of the same person at each; their ids sort as rows do."""
    ids = canonical(pd.Series([f"{row:06d}" for row in range(len(y))]))  # in the order of rows
    own = {party: Table(ids, table, (monotone or {}).get(party, {})) for party, table in tables.items()}
    peers = [party for party in tables if party != "bank"]

    def role(party: str) -> Role:
        if party == "bank":
            return lambda me: label_party(me, peers, own[party], y, weights, settings)
        return lambda me: feature_party(me, "bank", own[party], settings)

    return {party: role(party) for party in tables}


def train(tables: Tables, y: pd.Series, settings: Boosting, *, seed: int = 0, **more: Any) -> Run:
    return simulate(roles(tables, y, settings, **more), seed=seed)


def pooled(tables: Tables) -> dict[str, pd.DataFrame]:
    """All columns at the label party, in roster order."""
    return {"bank": pd.concat(tables.values(), axis=1)}


def tree_of(run: Run) -> list[tuple[Any, ...]]:
    """Each node of the forest as (column of the pooled table, bins that go left, left child, value, gain)."""
    learnt = run.results["bank"][1]
    forest, nodes = learnt.forest, []
    starts = {}
    start = 0
    for party in forest.parties:
        starts[party] = start
        start += len(run.results[party][0].bins)
    for node, owner in enumerate(forest.owner.tolist()):
        where: tuple[Any, ...] = ()
        if owner >= 0:
            party = forest.parties[owner]
            splits = run.results[party][0].splits
            at = forest.split[node]
            where = (starts[party] + int(splits.column[at]), splits.left[at].tobytes(), int(splits.rows[at]))
        nodes.append((where, int(forest.left[node]), forest.value[node], forest.gain[node]))
    return nodes


def shared(
    rows: int, columns: Sequence[int], seed: int = 0, classes: int = 2
) -> tuple[dict[str, pd.DataFrame], pd.Series]:
    """So many columns of numbers, some missing, at bank, shop, telco; and a label."""
    rng = np.random.default_rng(seed)
    x = pd.DataFrame(rng.normal(size=(rows, sum(columns))).round(1))
    x.columns = [f"x{i}" for i in range(sum(columns))]
    score = x.fillna(0).to_numpy() @ rng.normal(size=sum(columns)) + 0.3 * rng.normal(size=rows)
    y = pd.Series(pd.qcut(score, classes, labels=False), name="y")
    x = x.mask(rng.random(x.shape) < 0.1)
    edges = np.cumsum([0, *columns])
    names = ["bank", "shop", "telco"][: len(columns)]
    return {name: x.iloc[:, a:b] for name, a, b in zip(names, edges, edges[1:], strict=False)}, y
