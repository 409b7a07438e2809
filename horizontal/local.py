"""What a client does with the global model in one round, as a value that a role is given.

Takes part: one client, alone, on its own rows; nothing leaves here. `fedavg` is local epochs of mini-batches,
`fedsgd` one gradient step on all rows. Each round starts with a fresh optimizer, because a client that is
not sampled has no state to keep.
Source: McMahan et al., AISTATS 2017, Algorithm 1.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from protocols.arrays import Arrays
from protocols.learning.training import Settings, epoch_flops, train


@dataclass(frozen=True)
class LocalRule:
    """`settings.epochs` local epochs in batches of `settings.batch_size`."""

    settings: Settings

    def apply(
        self,
        module: nn.Module,
        weights: Arrays,
        x: torch.Tensor,
        y: torch.Tensor,
        rng: np.random.Generator,
    ) -> tuple[Arrays, float]:
        """Train `module` in place from `weights` on x (n, ...), y (n, ...); the new weights, and the
        mean training loss of the last local epoch."""
        weights.load_into(module)
        loss = train(module, x, y, self.settings, rng, epochs=self.settings.epochs)
        return Arrays.from_module(module), loss

    def flops(self, module: nn.Module, shape: tuple[int, ...]) -> float:
        """FLOPs of `apply` on rows of `shape`."""
        return self.settings.epochs * epoch_flops(module, shape, self.settings.batch_size)


def fedavg(settings: Settings) -> LocalRule:
    """FedAvg's client: `settings.epochs` epochs over its own rows."""
    return LocalRule(settings)


def fedsgd(settings: Settings) -> LocalRule:
    """FedSGD's client: one step of plain SGD on all its rows at once, with `settings.learning_rate`.

    `epochs`, `batch_size`, `optimizer` and `momentum` of the settings do not apply. The average of these
    steps by rows is the step that pooled rows would take.
    """
    return LocalRule(replace(settings, epochs=1, batch_size=sys.maxsize, optimizer="sgd", momentum=0.0))
