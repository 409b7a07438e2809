"""What all parties of a horizontal run are told; nobody's secret. The roles take it as it is.

Takes part: the server and every client. A network of the caller's own has no name, and is given to each role
beside this; so it runs in one process only.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from horizontal.algorithms.choice import ChosenClient, ChosenServer
from horizontal.algorithms.fedavg import Average, FedAvg
from horizontal.rules import Algorithm
from horizontal.sampling import check_fraction
from protocols.data.tables import Kind
from protocols.learning.networks import Network, Registered, brought, named
from protocols.learning.training import Settings, check_count, check_network
from protocols.programs import Parameters


class Horizontal(Parameters):
    """As the parameters of the estimators, where each is explained."""

    kind: Kind
    target: str  # the label column, at every client
    model: Registered = "mlp"
    hidden: tuple[int, ...] = (64, 32)
    rounds: int = 20
    local_epochs: int = 1
    fraction: float = 1.0
    algorithm: ChosenClient = FedAvg()
    server: ChosenServer = Average()
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    standardise: bool = True

    def network(self, module: nn.Module | None, seed: int) -> Network:
        """How every party builds the network: a copy of `module`, or by name if there is none."""
        if module is None:
            return named(self.model, self.hidden, self.kind, seed)
        return brought(module, self.kind, seed)

    def rules(self) -> Algorithm:
        """What both ends do in each round. ConfigError for settings that cannot be meant."""
        check_network(self.hidden, self.standardise)
        check_count("rounds", self.rounds)
        check_count("local_epochs", self.local_epochs)
        check_fraction(self.fraction)
        settings = Settings.of(self, self.kind, self.local_epochs)
        return Algorithm(self.algorithm.rule(settings), self.server.rule())
