"""What all parties of split learning are told; nobody's secret. The roles take it as it is.

Takes part: the server and every client. A network of the caller's own has no name, and is given to each role
beside this; so it runs in one process only.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from protocols.data.tables import Kind
from protocols.errors import ConfigError
from protocols.learning.networks import Registered, network
from protocols.learning.training import Settings, check_network
from protocols.programs import Parameters
from split.chain import Layers, check_cut, cut_positions, divide


class SplitNet(Parameters):
    """As the parameters of the estimators, where each is explained."""

    kind: Kind
    target: str  # the label column, at every client
    model: Registered = "mlp"  # an nn.Sequential
    cut: tuple[int, ...] = (2,)  # one, or two for the U shape
    hidden: tuple[int, ...] = (64, 32)
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    standardise: bool = True

    @property
    def settings(self) -> Settings:
        """How the layers on both sides are trained."""
        return Settings.of(self, self.kind, self.epochs)

    @property
    def u_shaped(self) -> bool:
        """Whether clients hold the head, behind the second cut, and keep the labels."""
        return len(self.cut) == 2

    def check(self, module: nn.Module | None) -> None:
        """ConfigError for settings or a cut that cannot be meant, as far as that can be told without columns.

        module: the caller's network; by name if there is none.
        """
        check_network(self.hidden, self.standardise)
        _ = self.settings
        cut_positions(self.cut)
        if module is not None:
            check_cut(self.cut, len(_sequential(module)))
        elif self.model == "mlp":
            check_cut(self.cut, 2 * len(self.hidden) + 1)

    def layers(self, module: nn.Module | None, seed: int, columns: int, outputs: int) -> tuple[Layers, ...]:
        """What client and server hold: copies of the layers of `module`, or of the named network.

        seed: of a named network's first weights. ConfigError where cut, network and table do not fit.
        """
        whole = network(self.model, columns, outputs, self.hidden, seed) if module is None else module
        return divide(_sequential(whole), self.cut, columns, outputs)


def _sequential(model: object) -> nn.Sequential:
    if type(model) is not nn.Sequential:
        raise ConfigError(f"model should be an nn.Sequential (no subclass), got {type(model).__name__}")
    return model
