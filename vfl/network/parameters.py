"""What all parties of a vertical network are told before it begins: its parameters, nobody's secret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from protocols.data.tables import Kind
from protocols.errors import ConfigError
from protocols.learning.training import Settings, check_network
from protocols.programs import Parameters
from protocols.psi.choose import Once
from protocols.psi.ids import Rule
from vfl.alignment.roles import feature_parties


class VerticalNet(Parameters):
    """As the parameters of the estimators, which describe them."""

    label_party: str
    kind: Kind
    hidden: tuple[int, ...] = (64, 32)
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    standardise: bool = True
    duplicates: Literal["error", "first"] = "error"
    normalise: tuple[Rule, ...] = ()
    protocol: Once = "auto"
    may_be_empty: bool = False  # when predicting: no common row is no error

    @property
    def settings(self) -> Settings:
        """How every party's part of the network is trained."""
        return Settings.of(self, self.kind, self.epochs)

    def check(self) -> None:
        """ConfigError for settings that cannot be meant."""
        check_network(self.hidden, self.standardise)
        if not self.hidden:
            raise ConfigError("hidden=() should be one or more widths above 0, as in (64, 32)")
        _ = self.settings

    def peers(self, parties: Sequence[str]) -> tuple[str, ...]:
        """The feature parties. ConfigError where the label party takes no part, or alone."""
        return feature_parties(parties, self.label_party)
