"""The comparison over a network: what the parties' actual layout admits; the rest is named, never simulated.

Takes part: the caller, on its own table, and the parties that serve. The caller holds out a part of its own
rows for the test. Each method that runs is a run between these parties, so who learns what is that method's
affair, and each fit and each prediction is a job that all have to agree to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import pandas as pd
from rich.table import Table

from protocols.compare.measure import Spread
from protocols.compare.run import discover
from protocols.compare.task import Method, Outcome, Task
from protocols.data.tables import column
from protocols.errors import ConfigError
from protocols.learning.clients import SERVER
from protocols.learning.training import Settings
from protocols.progress import Report
from protocols.service.caller import Connected

COLUMNS = ["method", "seed", "score", "messages", "bytes", "predict_bytes", "seconds"]


@dataclass(frozen=True)
class PartiesComparison:
    """`frame`: one row per method that ran and seed. `left_out`: method -> what it needs and is not here."""

    frame: pd.DataFrame
    left_out: dict[str, str]
    metric: str
    me: str

    def renderable(self) -> Table:
        """The same for people."""
        caption = f"Bytes and messages: of {self.me}'s own lines. Seconds: of the clock, over the network."
        table = Table(title="what the layout of the parties admits", title_justify="left", caption=caption)
        for heading in ("method", f"test {self.metric}", "messages", "bytes", "to predict", "seconds"):
            table.add_column(heading)
        for method, rows in self.frame.groupby("method", sort=False):
            spread = Spread.of(rows["score"], quick=True)
            score = f"{spread.mean:.3f}" + (
                f" ({spread.low:.3f} to {spread.high:.3f})" if len(rows) > 1 else ""
            )
            means = rows[["messages", "bytes", "predict_bytes", "seconds"]].mean()
            said = [f"{means[name]:,.0f}" for name in ("messages", "bytes", "predict_bytes")]
            table.add_row(str(method), score, *said, f"{means['seconds']:.1f}")
        for method, needs in self.left_out.items():
            table.add_row(method, needs)
        return table


def compare_parties(
    federation: Connected,
    target: str,
    id: str,
    *,
    settings: Settings | None = None,
    hidden: tuple[int, ...] = (64, 32),
    methods: Sequence[str] | None = None,
    seeds: int = 2,
    test_size: float = 0.2,
    on_progress: Report | None = None,
) -> PartiesComparison:
    """Run each method that the parties' layout admits, on `seeds` divisions of the caller's own rows.

    target, id: columns of the caller's table. A book with a party "server" is taken for row partitions, any
    other for column partitions. ConfigError where the caller has no table, or a name cannot be meant.
    """
    if federation.data is None:
        raise ConfigError("the comparison tests on the caller's rows; connect with data").at(
            federation.me, "compare"
        )
    task = _task(federation, target, id, settings or Settings(), hidden, test_size)
    layout = "row partitions" if SERVER in federation.parties else "column partitions"
    admitted: list[Method] = []
    left_out: dict[str, str] = {}
    for method in discover(task, methods):
        if method.needs in (layout, "own table") and not method.hypothetical:
            admitted.append(method)
        elif not method.hypothetical:
            left_out[method.name] = f"needs {method.needs}"
    rows: list[dict[str, Any]] = []
    runs = [(method, seed) for method in admitted for seed in range(seeds)]
    for done, (method, seed) in enumerate(runs):
        if on_progress is not None:
            on_progress("methods x seeds", done, len(runs))
        start = perf_counter()
        outcome = _run(method, federation, task, seed)
        rows.append(_row(method, seed, outcome, perf_counter() - start))
    return PartiesComparison(pd.DataFrame(rows, columns=COLUMNS), left_out, task.metric, federation.me)


def _run(method: Method, federation: Connected, task: Task, seed: int) -> Outcome:
    return method.run(task, seed) if method.connected is None else method.connected(federation, task, seed)


def _row(method: Method, seed: int, outcome: Outcome, seconds: float) -> dict[str, Any]:
    return {
        "method": method.name,
        "seed": seed,
        "score": outcome.score,
        "messages": len(outcome.ledger),
        "bytes": outcome.ledger.nbytes,
        "predict_bytes": outcome.predict_ledger.nbytes,
        "seconds": seconds,
    }


def _task(
    federation: Connected, target: str, id: str, settings: Settings, hidden: tuple[int, ...], test_size: float
) -> Task:
    table = federation.data
    assert table is not None
    y = column(table, target, "target")
    column(table, id, "id")
    own = [name for name in table.columns if name not in (target, id)]
    classes = y.nunique()
    metric = "r2" if settings.kind == "regression" else "auc" if classes == 2 else "accuracy"
    columns = {party: own if party == federation.me else [] for party in federation.parties}
    return Task(
        name=federation.me,
        table=table,
        id=id,
        target=target,
        columns=columns,
        label_party=federation.me,
        settings=settings,
        hidden=hidden,
        metric=metric,  # type: ignore[arg-type]  # one of the three
        test_size=test_size,
    )
