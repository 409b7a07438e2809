"""FedSGD: one step of plain SGD per client and round, on all its rows at once.

Takes part: one client, alone. The mean of these steps by rows is the step that pooled rows would take.
Source: McMahan et al., AISTATS 2017, Algorithm 1 with E = 1 and B = infinity.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from horizontal.algorithms.choice import ClientChoice
from horizontal.algorithms.fedavg import local_training
from horizontal.rules import ClientRule
from protocols.errors import ConfigError
from protocols.learning.training import Settings


class FedSGD(ClientChoice):
    """One full-batch step with `learning_rate`; `batch_size`, `optimizer` and `momentum` do not apply."""

    name = "fedsgd"

    def rule(self, settings: Settings) -> ClientRule[None]:
        """ConfigError for more than one local epoch."""
        if settings.epochs != 1:
            raise ConfigError(f"local_epochs={settings.epochs}: fedsgd takes one step a round, leave it at 1")
        return local_training(replace(settings, batch_size=sys.maxsize, optimizer="sgd", momentum=0.0))
