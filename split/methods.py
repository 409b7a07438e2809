"""Split learning as rows of the comparison: vanilla and U-shaped."""

from __future__ import annotations

from functools import partial

from protocols.compare.task import Method, Outcome, Task, score
from protocols.learning.clients import SERVER
from protocols.learning.networks import count_parameters
from split.estimator import SplitClassifier, SplitRegressor


def split(task: Task) -> list[Method]:
    """Both variants, the client holding the first hidden layer. None if the task's network has no such."""
    if not task.hidden:
        return []
    last = 2 * len(task.hidden)
    vanilla = Method(
        name="split: vanilla",
        column="split",
        architecture="Row-clients hold the first layers and train in turn, a server holds the rest.",
        privacy="Rows stay; smashed data leaves, from which rows can be reconstructed, and so do labels.",
        run=partial(_run, cut=2),
        needs="row partitions",
    )
    u_shaped = Method(
        name="split: U-shaped",
        column="split",
        architecture="Row-clients hold the first and last layers and train in turn, a server the middle.",
        privacy="Rows and labels stay; smashed data leaves, from which rows can be reconstructed, and "
        "cut gradients, which can tell labels apart.",
        run=partial(_run, cut=(min(2, last - 1), last)),
        needs="row partitions",
    )
    return [vanilla, u_shaped]


def _run(task: Task, seed: int, *, cut: int | tuple[int, int]) -> Outcome:
    train, test = task.split(seed)
    clients = task.row_clients(train, seed)
    settings = task.settings
    kind = SplitClassifier if settings.kind == "classification" else SplitRegressor
    model = kind(
        task.network(len(task.features), seed),
        cut,
        epochs=settings.epochs,
        random_state=seed,
        **settings.parameters(),
    ).fit(clients, target=task.target)
    asking = {next(iter(clients)): test}
    predicted = model.predict_proba(asking) if isinstance(model, SplitClassifier) else model.predict(asking)
    held = dict.fromkeys(clients, count_parameters(model.client_model_))
    held[SERVER] = count_parameters(model.server_model_)
    return Outcome(
        score=score(task, test[task.target], predicted),
        ledger=model.ledger_,
        predict_ledger=model.predict_ledger_,
        parameters=held,
        client_roles=frozenset(clients),
        epochs=settings.epochs,
        notes=("clients train one after another; the next one sees the layers of the one before it",),
    )
