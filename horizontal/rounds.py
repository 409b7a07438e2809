"""FedAvg and FedSGD: a server and K clients, each with rows of the same columns, train one model in rounds.

The server sees every sampled client's locally trained model in the clear. That is not anonymous: from an
update of few rows or few steps, inputs and labels can be reconstructed (Zhu, Liu, Han, "Deep Leakage from
Gradients", NeurIPS 2019). It also sees row counts, training losses and what `setup` tells. A client sees the
global model in every round in which it is sampled and at the end, and so what the other clients' rows did
to it. Semi-honest, no secure aggregation and no differential privacy: no guarantee stands behind an update.

An update is the client's new weights, as in the paper, not the difference: the server can subtract, and
with one client the run is plain SGD bit for bit, which a rounded difference would not be.
Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from horizontal.agreement import Agreed, agree, tensors, unite
from horizontal.local import LocalRule
from horizontal.rules import ServerRule, average, is_finite, mean_flops, mean_model
from horizontal.sampling import check_fraction, others, sample
from protocols.arrays import Array, Arrays, prefixed, under
from protocols.data.tables import Scaler
from protocols.errors import ConfigError, ProtocolError
from protocols.learning.agreement import scaled
from protocols.learning.clients import Rows
from protocols.learning.networks import Network, dry_run
from protocols.learning.training import outputs, outputs_flops
from protocols.party import Coordinator, Party
from protocols.wire.message import Message


class Model(Message, reveals="the global model, in the clear, and so what all clients' rows did to it"):
    """The model that a sampled client starts from, and at the end the result."""

    weights: Arrays


class Skip(Message, reveals="that the receiver is not sampled in this round"):
    """Nothing to do in this round."""


class Update(
    Message,
    reveals="one client's locally trained model in the clear, which can give away training rows; "
    "its row count and mean training loss",
):
    """A sampled client's answer."""

    weights: Arrays  # names, shapes and dtypes of the global model
    rows: Annotated[int, Field(ge=1)]  # training rows behind it
    loss: float  # mean over them, in the last local epoch


@dataclass(frozen=True)
class Round:
    """What the server notes of a round."""

    round: int
    clients: int  # sampled
    rows: int  # training rows of those
    loss: float  # mean training loss over those rows


@dataclass(frozen=True)
class Recipe:
    """What all parties of a run are told beforehand."""

    network: Network  # all parties' have one shape
    local: LocalRule
    rule: ServerRule[Any] = average
    rounds: int = 20
    fraction: float = 1.0  # of the clients, sampled in each round
    standardise: bool = True

    def __post_init__(self) -> None:
        check_fraction(self.fraction)
        if not self.rounds >= 1:
            raise ConfigError(f"rounds={self.rounds!r} should be at least 1")


@dataclass(frozen=True)
class Trained:
    """What a party holds at the end."""

    weights: Arrays
    agreed: Agreed
    columns: tuple[Any, ...] | None = None  # a client's feature columns, sorted; the server is told no name
    history: tuple[Round, ...] = ()  # the server's


async def client(me: Party, server: str, rows: Rows, recipe: Recipe) -> Trained:
    """A client, from set-up to the final global model."""
    agreed = await agree(me, server, rows, recipe.local.settings.kind, recipe.standardise)
    x, y = await tensors(me, rows, agreed)
    module = recipe.network(agreed.inputs, agreed.outputs)
    weights = await train_rounds(me, server, module, x, y, recipe.local, recipe.rounds)
    return Trained(weights, agreed, rows.columns)


async def server(me: Coordinator, recipe: Recipe) -> Trained:
    """The server, from set-up to the end. Its roster are the clients."""
    agreed = await unite(me, recipe.local.settings.kind, recipe.standardise)
    model = Arrays.from_module(recipe.network(agreed.inputs, agreed.outputs))
    weights, history = await serve_rounds(me, model, recipe.rule, recipe.rounds, recipe.fraction)
    return Trained(weights, agreed, history=tuple(history))


async def train_rounds(
    me: Party,
    server: str,
    module: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    local: LocalRule,
    rounds: int,
) -> Arrays:
    """A client's rounds on its own rows x (n, ...), y (n, ...); `module` is its to write into."""
    shape = Arrays.from_module(module)
    draws = dry_run(module, x[:2])[
        1
    ]  # borrowing torch's generator for nothing costs a tenth of a short round
    me.guard.group(len(x))  # an update of few rows gives them away
    done, _ = me.resumed()
    async with me.within("fit") as fit:
        for r in range(done, rounds):
            async with fit.within(r) as at:
                order = await at.recv(server, (Model, Skip), like=shape)
                if isinstance(order, Model):
                    rng, cost = at.rng("batches"), local.flops(module, tuple(x.shape))
                    layers = at.rng("layers") if draws else None
                    weights, loss = await at.compute(
                        local.apply, module, order.weights, x, y, rng, cost=cost, rng=layers
                    )
                    await at.send(server, Update(weights=weights, rows=len(x), loss=loss))
            me.checkpoint(r + 1, Arrays)  # it starts each round from what it is sent
    async with me.within("result") as at:
        return (await at.recv(server, Model, like=shape)).weights


async def serve_rounds(
    me: Coordinator, model: Arrays, rule: ServerRule[Any], rounds: int, fraction: float
) -> tuple[Arrays, list[Round]]:
    """The server's rounds from weights `model`; the final ones, which all clients get, and the history."""
    state = rule.init(model)
    history: list[Round] = []
    done, held = me.resumed()
    if held is not None:
        model, state, history = _unpacked(held, state)
    async with me.within("fit") as fit:
        for r in range(done, rounds):
            async with fit.within(r) as at:
                chosen = sample(me.roster, fraction, at.rng("clients"))
                await at.broadcast(Model(weights=model), to=chosen)
                await at.broadcast(Skip(), to=others(me.roster, chosen))
                updates = await at.gather(Update, of=chosen, like=model)
                cost = mean_flops(model, len(updates)) + rule.flops * model.size
                model, state = await at.compute(step, rule, state, model, updates, cost=cost)
            history.append(_note(r, updates))
            me.checkpoint(r + 1, partial(_packed, model, state, history))
            me.progress("rounds", r + 1, rounds)
    async with me.within("result") as at:
        await at.broadcast(Model(weights=model))
    return model, history


def step(
    rule: ServerRule[Any], state: Any, model: Arrays, updates: Mapping[str, Update]
) -> tuple[Arrays, Any]:
    """The next global model and the rule's state. ProtocolError for an update that is not finite."""
    mean = mean_model(model, [u.weights for u in updates.values()], [u.rows for u in updates.values()])
    if not is_finite(mean):
        bad = [party for party, u in updates.items() if not is_finite(u.weights)] or list(updates)
        raise ProtocolError(
            f"weights from {', '.join(bad[:3])} ({len(bad)} of {len(updates)} clients) are not finite: "
            "training diverged; lower learning_rate, or standardise"
        )
    following: tuple[Arrays, Any] = rule.apply(state, model, mean)
    return following


def _note(r: int, updates: Mapping[str, Update]) -> Round:
    rows = sum(u.rows for u in updates.values())
    return Round(r, len(updates), rows, sum(u.loss * (u.rows / rows) for u in updates.values()))


def _packed(model: Arrays, state: Any, history: Sequence[Round]) -> Arrays:
    """All that the server goes on from. ConfigError for a rule whose state is neither None nor Arrays."""
    if not isinstance(state, Arrays | None):
        raise ConfigError(
            f"a server rule's state should be Arrays or None to be kept, got {type(state).__name__}"
        )
    arrays = prefixed("model", model) | prefixed("rule", state or Arrays())
    arrays["counts"] = np.array([(note.round, note.clients, note.rows) for note in history], np.int64)
    arrays["losses"] = np.array([note.loss for note in history], np.float64)
    return Arrays(arrays)


def _unpacked(held: Arrays, fresh: Any) -> tuple[Arrays, Any, list[Round]]:
    """The model, the rule's state where a `fresh` one is Arrays, and the history."""
    notes = zip(held["counts"].tolist(), held["losses"].tolist(), strict=True)
    state = under("rule", held) if isinstance(fresh, Arrays) else fresh
    return under("model", held), state, [Round(r, clients, rows, loss) for (r, clients, rows), loss in notes]


async def predictor(me: Party, module: nn.Module, scaler: Scaler | None, x: Array) -> Array:
    """A holder of the final model predicts its own rows x (n, d) alone; outputs float32 (n, outputs)."""
    async with me.within("predict") as at:
        cost = 0.0 if scaler is None else 2.0 * x.size
        rows = torch.from_numpy(await at.compute(scaled, scaler, x, cost=cost))
        cost = outputs_flops(module, tuple(rows.shape))
        result: Array = await at.compute(outputs, module, rows, cost=cost)
        return result
