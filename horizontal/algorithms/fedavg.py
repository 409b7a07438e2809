"""FedAvg: clients train for some epochs on their own rows, and the server takes the mean of their models.

Takes part: one client, alone, on its own rows; and the server. Each round starts with a fresh optimizer,
because a client that is not sampled has no state to keep. An answer is the client's new weights, as in the
paper, not the difference: the server can subtract, and with one client the run is plain SGD bit for bit,
which a rounded difference would not be.
Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
2017, Algorithm 1.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from horizontal.algorithms.choice import ClientChoice, ServerChoice
from horizontal.rules import LOSS, ClientRule, Local, ServerRule, no_state
from protocols.arrays import Arrays
from protocols.learning.training import Settings, epoch_flops, train


class FedAvg(ClientChoice):
    """`local_epochs` passes over the client's own rows, in batches."""

    name = "fedavg"

    def rule(self, settings: Settings) -> ClientRule[None]:
        """settings.epochs: in a round."""
        return local_training(settings)


class Average(ServerChoice):
    """The mean of the clients' models is the next one."""

    name = "average"

    def rule(self) -> ServerRule[None]:
        """No state."""
        return ServerRule(no_state, lambda state, model, mean: (mean, None))


def local_training(settings: Settings) -> ClientRule[None]:
    """Train from the global model as `settings` say; the answer is the new weights and the last loss."""

    def apply(state: None, order: Arrays, local: Local) -> tuple[Arrays, None]:
        order.load_into(local.module)
        loss = train(local.module, local.x, local.y, settings, local.rng, epochs=settings.epochs)
        return Arrays({**Arrays.from_module(local.module), LOSS: np.array(loss, np.float64)}), None

    def flops(module: nn.Module, shape: tuple[int, ...]) -> float:
        return settings.epochs * epoch_flops(module, shape, settings.batch_size)

    return ClientRule(no_state, apply, flops)
