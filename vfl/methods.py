"""The vertical network as a method of the comparison: each organisation's columns at that organisation.

Who learns what: see `vfl.align` and `vfl.network.roles`. Every organisation has all ids, in a row order of
its own, so that alignment has its work to do; the test rows are aligned anew to be predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from protocols.compare.task import Method, Outcome, Task, score
from protocols.learning.networks import count_parameters
from vfl.network.estimator import VerticalNetClassifier, VerticalNetRegressor
from vfl.network.part import Own

if TYPE_CHECKING:
    from protocols.service.caller import Connected


def vertical(task: Task) -> list[Method]:
    """The vertical network. None for one organisation alone, or for more of them than first-layer units."""
    if len(task.columns) < 2 or not task.hidden or task.hidden[0] < len(task.columns):
        return []
    return [
        Method(
            name="vertical",
            column="vertical",
            architecture="Every organisation trains a bottom model on its own columns, the one with the "
            "label the top model too; all are data owners, there is no server.",
            privacy="Columns and labels stay; private set intersection shows which ids are common, "
            "embeddings leave, from which features can be reconstructed, and cut gradients, which can tell "
            "labels apart.",
            run=_run,
            needs="column partitions",
            connected=_run_connected,
        )
    ]


def _run(task: Task, seed: int) -> Outcome:
    train, test = task.split(seed)
    trained = _shuffled(task.organisations(train), seed)
    return _outcome(task, seed, trained, _shuffled(task.organisations(test), seed), test)


def _run_connected(parties: Connected, task: Task, seed: int) -> Outcome:
    train, test = task.split(seed)
    return _outcome(task, seed, parties.holding(train), parties.holding(test.drop(columns=task.target)), test)


def _outcome(
    task: Task,
    seed: int,
    train: Mapping[str, pd.DataFrame],
    asked: Mapping[str, pd.DataFrame],
    test: pd.DataFrame,
) -> Outcome:
    settings = task.settings
    estimator = VerticalNetClassifier if settings.kind == "classification" else VerticalNetRegressor
    model = estimator(
        hidden=task.hidden,
        epochs=settings.epochs,
        random_state=seed,
        **settings.parameters(),
    )
    model.fit(train, f"{task.label_party}.{task.target}", task.id)
    predicted = (
        model.predict_proba(asked) if isinstance(model, VerticalNetClassifier) else model.predict(asked)
    )
    return Outcome(
        score=score(task, test.set_index(task.id)[task.target].loc[predicted.index], predicted),
        ledger=model.ledger_,
        predict_ledger=model.predict_ledger_,
        parameters={party: _weights(own) for party, own in model.parts_.items()},
        client_roles=frozenset(model.parts_),
        epochs=settings.epochs,
        notes=(model.alignment_.shows,),
    )


def _shuffled(tables: dict[str, pd.DataFrame], seed: int) -> dict[str, pd.DataFrame]:
    """Every table in a row order of its own."""
    return {
        party: table.iloc[np.random.default_rng([seed, at]).permutation(len(table))]
        for at, (party, table) in enumerate(tables.items())
    }


def _weights(own: Own) -> int:
    return count_parameters(*(part.module for part in (own.bottom, own.top) if part is not None))
