"""FedAdam: the server takes a step of Adam along the clients' mean change, without bias correction.

Takes part: the server, which needs the mean alone. m and v are moving averages of the change and of its
square; v begins at tau^2, and tau keeps the first steps from being as long as the learning rate.
Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from horizontal.algorithms.choice import ServerChoice
from horizontal.rules import ServerRule
from protocols.arrays import Arrays, prefixed, under

Decay = Annotated[float, Field(ge=0, lt=1)]


class FedAdam(ServerChoice):
    """learning_rate: of the server's step (eta). beta_1, beta_2: decay of m and v. tau: adaptivity."""

    name = "fedadam"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3

    def rule(self) -> ServerRule[Arrays]:
        """State: m and v of every array."""

        def init(model: Arrays) -> Arrays:
            first = model.map(lambda a: np.full_like(a, self.tau**2))
            return Arrays(prefixed("m", 0.0 * model) | prefixed("v", first))

        def apply(state: Arrays, model: Arrays, mean: Arrays) -> tuple[Arrays, Arrays]:
            change = mean - model
            m = self.beta_1 * under("m", state) + (1 - self.beta_1) * change
            v = self.beta_2 * under("v", state) + (1 - self.beta_2) * change.map(np.square)
            step = Arrays((name, m[name] / (np.sqrt(v[name]) + self.tau)) for name in model)
            return model + self.learning_rate * step, Arrays(prefixed("m", m) | prefixed("v", v))

        return ServerRule(init, apply, flops=12.0)
