"""What a run of rounds costs above the same work without parties and messages."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from horizontal.algorithms.fedavg import Average, local_training
from horizontal.rounds import Skip, serve_rounds, train_rounds
from horizontal.rules import Algorithm, Model, Update
from protocols.arrays import Arrays, weighted_mean
from protocols.federation import simulate
from protocols.learning.networks import mlp
from protocols.learning.training import Settings, train
from protocols.party import Party, Role
from protocols.wire.codec import decode, encode
from tests.bench import Row, bench, ratio

Table = tuple[torch.Tensor, torch.Tensor]


@bench
def fedavg_in_process() -> list[Row]:
    """FedAvg's rounds against the bare loop of the same local training."""
    clients, rounds = 100, 10
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    tables: list[Table] = [
        (
            torch.from_numpy(rng.normal(size=(100, 30)).astype(np.float32)),
            torch.from_numpy(rng.integers(0, 2, 100)),
        )
        for _ in range(clients)
    ]
    settings = Settings(epochs=1)
    algorithm = Algorithm(local_training(settings), Average().rule())

    def bare() -> Arrays:
        module = mlp(30, 2, (64,))
        model = Arrays.from_module(module)
        for _ in range(rounds):
            updates = []
            for x, y in tables:
                model.load_into(module)
                train(module, x, y, settings, rng)
                updates.append(Arrays.from_module(module))
            model = weighted_mean(updates, [len(x) for x, _ in tables])
        return model

    def roles() -> Arrays:
        module = mlp(30, 2, (64,))
        parties: dict[str, Role] = {"server": lambda me: serve_rounds(me, module, algorithm, rounds, 1.0)}
        for i, table in enumerate(tables):
            parties[f"client{i}"] = _client(table, algorithm, rounds)
        weights: Arrays = simulate(parties).results["server"][0]
        return weights

    note = (
        "100 clients x 100 rows x 30 columns, MLP 30-64-2, 10 rounds; over the bare loop of the same training"
    )
    return [Row("fedavg in one process", ratio(roles, bare, 3), 1.3, note=note)]


def _client(table: Table, algorithm: Algorithm, rounds: int) -> Role:
    x, y = table
    return lambda me: train_rounds(me, "server", mlp(30, 2, (64,)), x, y, algorithm, rounds)


@bench
def thousand_clients() -> list[Row]:
    """Messages alone: 1,000 clients answer at once with 10,000 numbers of their own."""
    clients, rounds, size = 1000, 5, 10_000
    rng = np.random.default_rng(0)
    module, algorithm = (
        nn.Linear(size, 1, bias=False),
        Algorithm(local_training(Settings()), Average().rule()),
    )
    model = Arrays.from_module(module)
    own = [Arrays({"weight": rng.normal(size=(1, size)).astype(np.float32)}) for _ in range(clients)]

    def roles() -> Arrays:
        parties: dict[str, Role] = {"server": lambda me: serve_rounds(me, module, algorithm, rounds, 1.0)}
        for i, weights in enumerate(own):
            parties[f"client{i}"] = _echo(weights, rounds)
        final: Arrays = simulate(parties).results["server"][0]
        return final

    def broadcast() -> None:
        order = encode(Model(weights=model))
        for _ in own:
            decode(Model, order)

    def codec() -> None:
        for _ in range(rounds):
            broadcast()
            # As in a round, a thousand updates are there at once before the first is averaged.
            sent = [encode(Update(weights=weights, rows=1, loss=0.0)) for weights in own]
            _ = [decode(Update, body) for body in sent]
        broadcast()  # the result

    note = "1,000 clients x 5 rounds x 10,000 float32; over encoding and decoding the same messages"
    return [Row("rounds of 1,000 clients", ratio(roles, codec, 3), 3.0, note=note)]


def _echo(weights: Arrays, rounds: int) -> Role:
    async def echo(me: Party) -> None:
        async with me.within("fit") as fit:
            for r in range(rounds):
                async with fit.within(r) as at:
                    await at.recv("server", (Model, Skip), like=weights)
                    await at.send("server", Update(weights=weights, rows=1, loss=0.0))
        async with me.within("result") as at:
            await at.recv("server", Model, like=weights)

    return lambda me: echo(me)
