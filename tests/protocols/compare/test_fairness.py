"""What makes a comparison fair, as laws of every installed method: no test row has a say in training, and
all train with the task's own learning rate, optimizer, batch size and epochs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from protocols.compare.run import discover
from protocols.compare.task import Task
from protocols.errors import VflError
from tests.support import tiny

SEED = 1
KINDS = ("classification", "regression")
# Columns of unequal number, so that no two parties' layers have one shape.
TASKS = {
    kind: replace(tiny.task(kind), columns={"bank": list("ab"), "telco": list("cdef")}) for kind in KINDS
}
CASES = [
    pytest.param(kind, method.name, id=f"{kind}-{method.name}")
    for kind in KINDS
    for method in discover(TASKS[kind])
]


@dataclass
class Watched:
    """What the optimizers and the layers of a run did."""

    steps: list[str] = field(default_factory=list)  # digest of the parameters after each step
    rules: set[tuple[str, float]] = field(default_factory=set)
    batches: Counter[int] = field(default_factory=Counter)
    rows: Counter[tuple[int, int]] = field(default_factory=Counter)  # by shape of the layer they went through

    def after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        digest = hashlib.sha256()
        for group in optimizer.param_groups:
            self.rules.add((type(optimizer).__name__.lower(), group["lr"]))
            for parameter in group["params"]:
                digest.update(parameter.detach().numpy().tobytes())
        self.steps.append(digest.hexdigest())

    def before_layer(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Linear) and module.training and torch.is_grad_enabled():
            if args[0].device.type == "meta":  # only asked for its cost
                return
            self.batches[len(args[0])] += 1
            self.rows[module.in_features, module.out_features] += len(args[0])


@pytest.fixture
def watched() -> Iterator[Watched]:
    seen = Watched()
    hooks = [
        register_optimizer_step_post_hook(seen.after_step),
        register_module_forward_pre_hook(seen.before_layer),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def run(task: Task, name: str) -> None:
    method = next(m for m in discover(task) if m.name == name)
    method.run(task, SEED)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_test_rows_have_no_say_in_training(
    kind: str, name: str, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASKS[kind]
    run(task, name)
    before = sorted(watched.steps)
    watched.steps.clear()
    train, test = task.split(SEED)
    table = task.table.copy()
    at = test.index
    noise = np.random.default_rng(0).normal(size=(len(at), len(task.features)))
    table.loc[at, task.features] += 50 * noise
    table.loc[at, task.target] = table[task.target].max() - table.loc[at, task.target]

    def same_rows(self: Task, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        # Stratifying by the changed labels would draw others.
        assert seed == SEED
        return self.table.loc[train.index], self.table.loc[at]

    monkeypatch.setattr(Task, "split", same_rows)
    run(replace(task, table=table), name)
    assert before and sorted(watched.steps) == before


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_method_trains_by_the_tasks_settings(kind: str, name: str, watched: Watched) -> None:
    settings = replace(TASKS[kind].settings, optimizer="sgd", learning_rate=0.0123, batch_size=7, epochs=3)
    task = replace(TASKS[kind], settings=settings)
    run(task, name)
    train, _ = task.split(SEED)
    assert watched.rules == {("sgd", 0.0123)}
    assert max(watched.batches) == 7 and watched.batches[7] > sum(watched.batches.values()) / 2
    # Over all roles, every layer saw every training row once an epoch.
    assert set(watched.rows.values()) == {3 * len(train)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [m.name for m in discover(TASKS["classification"])])
def test_training_that_diverges_is_named_with_its_fix(kind: str, name: str) -> None:
    settings = replace(TASKS[kind].settings, optimizer="sgd", learning_rate=1e30)
    fix = r"training diverged.*(lower learning_rate|learning rate below 1e\+30 or optimizer='adam')"
    with pytest.raises(VflError, match=fix):
        run(replace(TASKS[kind], settings=settings), name)
