"""Rounds: a server and K clients, each with rows of the same columns, train one model by an `Algorithm`.

The server sees every sampled client's locally trained model in the clear. That is not anonymous: from an
update of few rows or few steps, inputs and labels can be reconstructed (Zhu, Liu, Han, "Deep Leakage from
Gradients", NeurIPS 2019). It also sees row counts, training losses and what `setup` tells. A client sees the
global model in every round in which it is sampled and at the end, and so what the other clients' rows did
to it. Semi-honest, no secure aggregation and no differential privacy: no guarantee stands behind an update.
Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from horizontal.agreement import Agreed, agree, tensors, unite
from horizontal.parameters import Horizontal
from horizontal.rules import LOSS, Algorithm, Local, Model, ServerRule, diverged
from horizontal.sampling import others, sample
from protocols.arrays import Array, Arrays, prefixed, under
from protocols.data.tables import Scaler
from protocols.errors import ConfigError, ProtocolError
from protocols.learning.agreement import scaled
from protocols.learning.clients import Rows
from protocols.learning.networks import dry_run
from protocols.learning.training import outputs, outputs_flops
from protocols.party import Coordinator, Party
from protocols.sums.plain import Plain, Pooled, Sum
from protocols.wire.message import Message


class Skip(Message, reveals="that the receiver is not sampled in this round"):
    """Nothing to do in this round."""


@dataclass(frozen=True)
class Round:
    """What the server notes of a round."""

    round: int
    clients: int  # sampled
    rows: int  # training rows of those
    loss: float  # mean training loss over those rows


@dataclass(frozen=True)
class Trained:
    """What a party holds at the end."""

    weights: Arrays
    agreed: Agreed
    columns: tuple[Any, ...] | None = None  # a client's feature columns, sorted; the server is told no name
    history: tuple[Round, ...] = ()  # the server's


async def client(
    me: Coordinator, server: str, rows: Rows, told: Horizontal, module: nn.Module | None
) -> Trained:
    """A client, from set-up to the final global model. module: a network of the caller's own, if any."""
    agreed = await agree(me, server, rows, told.kind, told.standardise)
    network = told.network(module, me.desk.seed)(agreed.inputs, agreed.outputs)
    x, y = await tensors(me, rows, agreed)
    weights = await train_rounds(me, server, network, x, y, told.rules(), told.rounds)
    return Trained(weights, agreed, rows.columns)


async def server(me: Coordinator, told: Horizontal, module: nn.Module | None) -> Trained:
    """The server, from set-up to the end. Its roster are the clients."""
    agreed = await unite(me, told.kind, told.standardise)
    network = told.network(module, me.desk.seed)(agreed.inputs, agreed.outputs)
    weights, history = await serve_rounds(me, network, told.rules(), told.rounds, told.fraction)
    return Trained(weights, agreed, history=tuple(history))


async def train_rounds(
    me: Party,
    server: str,
    module: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    algorithm: Algorithm,
    rounds: int,
    way: Sum | None = None,
) -> Arrays:
    """A client's rounds on its own rows x (n, ...), y (n, ...), and the final global model.

    module: its own, to write into. way: how answers are summed up; by default the server sees each one.
    """
    model, rule, way = Arrays.from_module(module), algorithm.client, way or Plain(algorithm.answer)
    # Borrowing torch's generator for nothing costs a tenth of a short round.
    draws = dry_run(module, x[:2])[1]
    me.guard.group(len(x))  # an update of few rows gives them away
    kept = _Kept(rule.init(model))
    for step in me.steps(rounds, kept):
        async with step as at:
            order = await at.recv(server, (algorithm.order, Skip), like=model)
            if isinstance(order, Skip):
                continue
            local, cost = Local(module, x, y, at.rng("batches")), rule.flops(module, tuple(x.shape))
            layers = at.rng("layers") if draws else None
            answer, kept.state = await at.compute(
                rule.apply, kept.state, order.weights, local, cost=cost, rng=layers
            )
            clients = [party for party in me.desk.parties if party != server]
            await way.give(at, server, clients, answer, len(x))
    async with me.within("result") as at:
        return (await at.recv(server, Model, like=model)).weights


async def serve_rounds(
    me: Coordinator,
    module: nn.Module,
    algorithm: Algorithm,
    rounds: int,
    fraction: float,
    way: Sum | None = None,
) -> tuple[Arrays, list[Round]]:
    """The server's rounds from the weights of `module`: the final ones, which all clients get, and a history.

    way: how answers are summed up; by default the server sees each one.
    """
    rule, way = algorithm.server, way or Plain(algorithm.answer)
    trained = frozenset(name for name, p in module.named_parameters() if p.requires_grad)
    model = Arrays.from_module(module)
    kept = _Kept(rule.init(_only(model, trained)), model)
    for step in me.steps(rounds, kept, progress="rounds"):
        async with step as at:
            chosen = sample(me.roster, fraction, at.rng("clients"))
            await at.broadcast(algorithm.order(weights=kept.model), to=chosen)
            await at.broadcast(Skip(), to=others(me.roster, chosen))
            pooled = await way.take(at, chosen, algorithm.given(model))
            cost = rule.flops * model.size
            kept.model, kept.state = await at.compute(
                following, rule, kept.state, kept.model, pooled, trained, cost=cost
            )
            loss = float(pooled.mean[LOSS])
            kept.history.append(Round(step.number, len(chosen), int(pooled.weight), loss))
    async with me.within("result") as at:
        await at.broadcast(Model(weights=kept.model))
    return kept.model, kept.history


def following(
    rule: ServerRule[Any], state: Any, model: Arrays, pooled: Pooled, trained: Set[str]
) -> tuple[Arrays, Any]:
    """The next global model and the rule's state: `trained` arrays by the rule, others as their mean.

    ProtocolError for an answer that is not finite, naming whose it is where that is known.
    """
    if diverged(model, pooled.mean):
        bad = [party for party, part in pooled.parts.items() if diverged(model, part.value)]
        whose = f"weights from {', '.join(bad[:3])} ({len(bad)} of {len(pooled.parts)} clients) are"
        raise ProtocolError(
            f"{whose if bad else 'the mean of the weights of the clients is'} not finite: training diverged; "
            "lower learning_rate, or standardise"
        )
    mean = Arrays((name, pooled.mean[name]) for name in model)
    stepped, state = rule.apply(state, _only(model, trained), _only(mean, trained))
    return Arrays({**mean, **stepped}), state


def _only(arrays: Arrays, names: Set[str]) -> Arrays:
    return Arrays((name, array) for name, array in arrays.items() if name in names)


@dataclass
class _Kept:
    """What an end goes on from: its rule's state, and the server's model and history."""

    state: Any  # None or Arrays
    model: Arrays = field(default_factory=Arrays)
    history: list[Round] = field(default_factory=list)

    def snapshot(self) -> Arrays:
        """ConfigError for a rule whose state is neither None nor Arrays."""
        if not isinstance(self.state, Arrays | None):
            raise ConfigError(
                f"a rule's state should be Arrays or None to be kept, got {type(self.state).__name__}"
            )
        arrays = prefixed("model", self.model) | prefixed("rule", self.state or Arrays())
        notes = [(note.round, note.clients, note.rows) for note in self.history]
        arrays["counts"] = np.array(notes, np.int64).reshape(-1, 3)
        arrays["losses"] = np.array([note.loss for note in self.history], np.float64)
        return Arrays(arrays)

    def restore(self, held: Arrays) -> None:
        """The rule's state where it keeps one."""
        notes = zip(held["counts"].tolist(), held["losses"].tolist(), strict=True)
        self.history = [Round(r, clients, rows, loss) for (r, clients, rows), loss in notes]
        self.model = under("model", held)
        if self.state is not None:
            self.state = under("rule", held)


async def predictor(me: Party, module: nn.Module, scaler: Scaler | None, x: Array) -> Array:
    """A holder of the final model predicts its own rows x (n, d) alone; outputs float32 (n, outputs)."""
    async with me.within("predict") as at:
        cost = 0.0 if scaler is None else 2.0 * x.size
        rows = torch.from_numpy(await at.compute(scaled, scaler, x, cost=cost))
        cost = outputs_flops(module, tuple(rows.shape))
        result: Array = await at.compute(outputs, module, rows, cost=cost)
        return result
