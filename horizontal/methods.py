"""FedAvg as a method of the comparison: the task's rows dealt out to clients, one round per epoch.

Who learns what: see `horizontal.rounds`. The test rows are dealt out too, and predicted where they lie.
"""

from __future__ import annotations

from horizontal.estimator import FedClassifier, FedRegressor
from protocols.compare.task import Method, Outcome, Task, score
from protocols.learning.clients import SERVER
from protocols.learning.networks import count_parameters


def fedavg(task: Task) -> list[Method]:
    """FedAvg with one local epoch a round, so that a round is an epoch of the other methods."""
    return [
        Method(
            name="fedavg",
            column="federated",
            architecture="Clients train the whole model on their own rows, a server averages.",
            privacy="Data minimisation: rows stay, updates leave in the clear and can give rows away.",
            run=_run,
            needs="row partitions",
        )
    ]


def _run(task: Task, seed: int) -> Outcome:
    settings = task.settings
    estimator = FedClassifier if settings.kind == "classification" else FedRegressor
    model = estimator(
        hidden=task.hidden,
        rounds=settings.epochs,
        random_state=seed,
        **settings.parameters(),
    )
    train, test = (frame.reset_index(drop=True) for frame in task.split(seed))
    model.fit(task.row_clients(train, seed), target=task.target)
    rows = task.row_clients(test, seed)
    predicted = model.predict_proba(rows) if isinstance(model, FedClassifier) else model.predict(rows)
    held = count_parameters(model.model_)
    return Outcome(
        score=score(task, test[task.target], predicted.sort_index()),
        ledger=model.ledger_,
        predict_ledger=model.predict_ledger_,
        parameters={party: held for party in (SERVER, *model.clients_)},
        client_roles=frozenset(model.clients_),
        epochs=settings.epochs,
        notes=(
            "every client starts a fresh optimizer in each round, so the moving averages of adam and the "
            "momentum of sgd start anew; the other networks keep theirs throughout",
        ),
    )
